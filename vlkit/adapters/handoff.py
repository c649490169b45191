"""Choose where a method's result enters, for methods that support both the tokens and the pooled embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, cast

from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.errors import UserError

Handoff = Literal["auto", "tokens", "pooled"]


class TwoHandoffs(MethodOptions):
    """Base of options with a ``handoff``. Each subclass is a dataclass that maps options to hand-offs.

    Attributes:
        handoff: ``tokens``, ``pooled``, or ``auto``: the hand-off of an option in :attr:`choosing` if one is set,
            otherwise the view that the head reads.
        belonging: option -> the only hand-off it works with; with the other one it is an error.
        choosing: options that select their hand-off when ``handoff`` is ``auto``.
    """

    handoff: Handoff
    belonging: ClassVar[dict[str, Literal["tokens", "pooled"]]] = {}
    choosing: ClassVar[tuple[str, ...]] = ()

    def handoff_for(self, reads: Reads) -> Literal["tokens", "pooled"]:
        """The hand-off for a head that reads the given view.

        Raises:
            UserError: an option belongs to the other hand-off, or an option selects ``pooled`` but the head reads
                tokens.
        """
        chosen = self.handoff_asked_for() or reads
        if reads == "tokens" and chosen == "pooled":
            option = "handoff pooled" if self.handoff == "pooled" else next(self.given(self.choosing))
            raise UserError(
                f"--adapter.{option}: works on the pooled embedding, but this head reads tokens; leave it out"
            )
        self._check_options(chosen)
        return chosen

    def handoff_asked_for(self) -> Literal["tokens", "pooled"] | None:
        """The hand-off that the options select; None = the view that the head reads."""
        if self.handoff != "auto":
            return self.handoff
        return next((self.belonging[name] for name in self.given(self.choosing)), None)

    def given(self, names: Iterable[str]) -> Iterator[str]:
        """The options among ``names`` whose value differs from the default."""
        defaults = {field.name: field.default for field in dataclasses.fields(cast(Any, self))}
        return (name for name in names if getattr(self, name) != defaults[name])

    def __post_init__(self) -> None:
        """Reject combinations of options that fail with every head."""
        asked = self.handoff_asked_for()
        if asked is not None:
            self._check_options(asked)

    def _check_options(self, chosen: str) -> None:
        for name in self.given(self.belonging):
            if self.belonging[name] != chosen:
                fix = "leave one of the two out" if self.handoff == chosen else "give both, or leave it out"
                raise UserError(f"--adapter.{name}: belongs to --adapter.handoff {self.belonging[name]}; {fix}")
