"""What every options class of a method has: facts that other rooms go by, and the two ways to build the method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError

Reads = Literal["pooled", "tokens"]
"""Which view of :class:`vlkit.adapters.base.Encoded` a head reads; a method that cannot adapt it refuses when built."""

Fact = Literal["trains_base", "has_early_route", "feeds_tokens", "feeds_decoder", "fits_any_tower", "couples_samples"]
"""Name of a fact of :class:`MethodOptions`."""


class MethodOptions:
    """Base of every options class in :data:`vlkit.adapters.ADAPTERS`: a fact about a method stands there alone.

    Attributes:
        kind: name of the method.
        trains_base: weights of the base, or parts put into it, train; nothing of it is frozen.
        has_early_route: blocks run without gradient and give the same values for the same input: they can be cached.
        feeds_tokens: adapts what a head reads token by token, not the pooled embedding alone.
        feeds_decoder: adapts both stacks of an encoder-decoder (:meth:`build_stacks`).
        fits_any_tower: needs nothing of the inside of a block; else a tower of transformer blocks of one width.
        running: names of the options that say how a training step runs, not what is trained. A saved adapter is
            loaded without them.
        couples_samples: on convolutional towers the samples of a batch influence one another (batch norm), so a batch
            in parts gives other numbers.
    """

    kind: str
    __dataclass_fields__: ClassVar[dict[str, Any]]  # every subclass is a dataclass
    trains_base: ClassVar[bool] = False
    has_early_route: ClassVar[bool] = True
    feeds_tokens: ClassVar[bool] = True
    feeds_decoder: ClassVar[bool] = False
    fits_any_tower: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = False
    running: ClassVar[tuple[str, ...]] = ()

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> nn.Module:
        """Put the method on a tower: a module with ``forward(x) -> Encoded``, for a head that reads the given view.

        Raises:
            UserError: an option, the tower or the view does not fit; says what does.
        """
        raise TypeError(f"{type(self).__name__} has no build")

    def build_stacks(self, encoder: StagedEncoder, decoder: StagedEncoder) -> tuple[nn.Module, nn.Module]:
        """Put the method on the two stacks of an encoder-decoder, for a head that extends the encoder's output.

        Args:
            encoder, decoder: both stacks of a T5, staged (:class:`vlkit.encoders.towers.t5.T5Decoder`).

        Returns:
            The adapted encoder and decoder. Both have ``base``, the stack itself.

        Raises:
            UserError: the method does not have :attr:`feeds_decoder`, or an option does not fit.
        """
        raise self.refusal("the decoder would not see what the head adds to the encoder's output", "feeds_decoder")

    def for_cells(self) -> MethodOptions:
        """These options for a head that reads what each image cell says; what the user gave stays."""
        return self

    @property
    def examples_wanted(self) -> int:
        """Training examples that :meth:`prepare` looks at before the first step; 0 = it has nothing to prepare."""
        return 0

    def prepare(self, model: nn.Module, losses: Iterable[Tensor], count: int) -> None:
        """Start what trains in ``model`` from training examples.

        Args:
            model: on its device.
            losses: a generator that runs ``model`` on one example at a time and yields its loss, with gradient.
            count: how many there are.
        """
        raise TypeError(f"{type(self).__name__} has nothing to prepare")

    def refusal(self, reason: str, fact: Fact) -> UserError:
        """The error for what only methods with ``fact`` can do: names them."""
        return UserError(f"--adapter.kind {self.kind}: {reason}; take {one_of(kinds_with(fact))}")


KNOWN: dict[str, type[MethodOptions]] = {}
"""Every method by its name. :mod:`vlkit.adapters.options`, which imports them all, writes them here."""


def kinds_with(fact: Fact) -> list[str]:
    """Names of the methods that have ``fact``."""
    return [kind for kind, options in KNOWN.items() if getattr(options, fact)]


def one_of(names: list[str]) -> str:
    """``a, b or c``."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
