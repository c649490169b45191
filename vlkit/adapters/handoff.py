"""Where a method's result enters, the tokens or the pooled embedding: decided here for methods that can do both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, cast

from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.errors import UserError

Handoff = Literal["auto", "tokens", "pooled"]


class TwoHandoffs(MethodOptions):
    """Base of options with a ``handoff``. Its subclass is a dataclass and says which options belong to which hand-off.

    Attributes:
        handoff: ``tokens``, ``pooled``, or ``auto``: what an option of :attr:`choosing` asks for, else what the head
            reads.
        belonging: option -> its hand-off; given for the other one, it is refused.
        choosing: those of them that choose their hand-off when ``handoff`` is ``auto``.
    """

    handoff: Handoff
    belonging: ClassVar[dict[str, Literal["tokens", "pooled"]]] = {}
    choosing: ClassVar[tuple[str, ...]] = ()

    def handoff_for(self, reads: Reads) -> Literal["tokens", "pooled"]:
        """The hand-off for a head that reads the given view.

        Raises:
            UserError: an option belongs to the other one, or the head reads tokens and an option asks for ``pooled``.
        """
        chosen = self.handoff_asked_for() or reads
        if reads == "tokens" and chosen == "pooled":
            option = "handoff pooled" if self.handoff == "pooled" else next(self.given(self.choosing))
            raise UserError(
                f"--adapter.{option}: is for the pooled embedding, but this head reads tokens; leave it out"
            )
        self._check_options(chosen)
        return chosen

    def handoff_asked_for(self) -> Literal["tokens", "pooled"] | None:
        """The hand-off that the options ask for; None = whatever the head reads."""
        if self.handoff != "auto":
            return self.handoff
        return next((self.belonging[name] for name in self.given(self.choosing)), None)

    def given(self, names: Iterable[str]) -> Iterator[str]:
        """Those of ``names`` that do not have their default value."""
        defaults = {field.name: field.default for field in dataclasses.fields(cast(Any, self))}
        return (name for name in names if getattr(self, name) != defaults[name])

    def __post_init__(self) -> None:
        """Refuse what no head can make right."""
        asked = self.handoff_asked_for()
        if asked is not None:
            self._check_options(asked)

    def _check_options(self, chosen: str) -> None:
        for name in self.given(self.belonging):
            if self.belonging[name] != chosen:
                fix = "leave one of the two out" if self.handoff == chosen else "give both, or leave it out"
                raise UserError(f"--adapter.{name}: belongs to --adapter.handoff {self.belonging[name]}; {fix}")
