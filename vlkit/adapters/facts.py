"""Base class of all method options: facts about the method that other modules query, and how to build it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError

Reads = Literal["pooled", "tokens"]
"""Which view of :class:`vlkit.adapters.base.Encoded` a head reads; ``build`` raises if the method cannot adapt it."""

Fact = Literal[
    "trains_base",
    "has_early_route",
    "feeds_tokens",
    "feeds_decoder",
    "fits_any_tower",
    "couples_samples",
    "gradient_in_base",
]
"""Name of a fact of :class:`MethodOptions`."""


class MethodOptions:
    """Base of every options class in :data:`vlkit.adapters.ADAPTERS`, the only place for facts about a method.

    Attributes:
        kind: name of the method.
        trains_base: the method trains weights of the base, or modules inserted into it, through the whole base.
        has_early_route: some blocks run without gradient and are deterministic, so their output can be cached.
        feeds_tokens: adapts the tokens that a head reads, not only the pooled embedding.
        feeds_decoder: adapts both stacks of an encoder-decoder (:meth:`build_stacks`).
        joint_side_network: its side encoder reads the visual tokens together with the text, so a head cannot add tokens
            to the memory afterwards.
        fits_any_tower: does not read inside a block; otherwise it needs transformer blocks of one width.
        running: names of the options that control how a training step runs, not what is trained. They are ignored
            when a saved adapter is loaded.
        couples_samples: on convolutional towers the samples of a batch affect each other (batch norm), so splitting a
            batch changes the numbers.
        gradient_in_base: with some option, gradient passes through tokens in blocks of the base; the method then has an
            option ``saved``, the format of their saved activations.
    """

    kind: str
    __dataclass_fields__: ClassVar[dict[str, Any]]  # every subclass is a dataclass
    trains_base: ClassVar[bool] = False
    has_early_route: ClassVar[bool] = True
    feeds_tokens: ClassVar[bool] = True
    feeds_decoder: ClassVar[bool] = False
    joint_side_network: ClassVar[bool] = False
    fits_any_tower: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = False
    gradient_in_base: ClassVar[bool] = False
    running: ClassVar[tuple[str, ...]] = ()

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> nn.Module:
        """Apply the method to a tower; returns a module with ``forward(x) -> Encoded`` for a head that reads ``reads``.

        Raises:
            UserError: an option, the tower or the view does not fit; the message names what fits.
        """
        raise TypeError(f"{type(self).__name__} has no build")

    def build_stacks(self, encoder: Any, decoder: Any) -> tuple[Any, Any]:
        """Apply the method to both stacks of an encoder-decoder.

        Args:
            encoder, decoder: both stacks of a T5, staged (:class:`vlkit.encoders.towers.t5.T5Decoder`).

        Returns:
            The adapted encoder, a :class:`vlkit.adapters.stacks.TextReader`, and the adapted decoder, a
            :class:`vlkit.adapters.stacks.TextWriter`; both are modules.

        Raises:
            UserError: the method lacks :attr:`feeds_decoder`, or an option does not fit.
        """
        raise self.refusal("the decoder would not see what the head adds to the encoder's output", "feeds_decoder")

    def for_cells(self) -> MethodOptions:
        """These options with defaults for a head that reads image patches; values the user set are kept."""
        return self

    def for_fusion(self) -> MethodOptions:
        """The same for a head with a transformer of its own over the patches and words of two towers."""
        return self.for_cells()

    def for_answers(self) -> MethodOptions:
        """The same for such a head that classifies answers to questions."""
        return self.for_fusion()

    @property
    def examples_wanted(self) -> int:
        """Number of training examples that :meth:`prepare` reads before the first step; 0 = nothing to prepare."""
        return 0

    def prepare(self, model: nn.Module, losses: Iterable[Tensor], count: int) -> None:
        """Initialise the trainable parts of ``model`` from training examples.

        Args:
            model: on its device.
            losses: a generator that runs ``model`` on one example at a time and yields its loss, with gradient.
            count: number of examples.
        """
        raise TypeError(f"{type(self).__name__} has nothing to prepare")

    def refusal(self, reason: str, fact: Fact) -> UserError:
        """The error for a request that only methods with ``fact`` support; it names those methods."""
        return UserError(f"--adapter.kind {self.kind}: {reason}; use {one_of(kinds_with(fact))}")


KNOWN: dict[str, type[MethodOptions]] = {}
"""Method name -> options class; :mod:`vlkit.adapters.options`, which imports all methods, fills it."""


def kinds_with(fact: Fact) -> list[str]:
    """Names of the methods that have ``fact``."""
    return [kind for kind, options in KNOWN.items() if getattr(options, fact)]


def one_of(names: list[str]) -> str:
    """Join names as ``a, b or c``."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
