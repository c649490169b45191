"""LST, ladder side-tuning (NeurIPS 2022): a narrow transformer beside the frozen one reads every kept block's output.

With ``h_0`` the embeddings, ``h_{i+1}`` the output of block i, width D, and d = D / reduction:

    s = W_0 h_0
    for each kept block i:  s = side_i(mu_i s + (1 - mu_i) W_i h_{i+1}),  mu_i = sigmoid(alpha_i / 0.1)
    out = U norm(s)

Nothing is fed back into the frozen blocks, so they need no saved activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.adapters.lst.fisher import start_from_fisher
from vlkit.adapters.lst.ladder import Gate, Ladder, make_ladder, start_
from vlkit.adapters.lst.pruning import prune_
from vlkit.adapters.lst.t5 import LstT5Decoder, LstT5Encoder, start_stacks
from vlkit.encoders.blocks.anatomy import Opaque
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.errors import UserError


class LstAdapter(Adapter):
    """LST on one tower: the output of the side network is projected to tokens of the base's width.

    Args:
        ladder: the side network.
        width: D.
        narrow: d.
        bias: whether the output projection has a bias.
        init: ``"published"``: only the side network's output; ``"identity"``: the output is added to the state after
            the last frozen block and starts at 0.
    """

    handoff = "tokens"
    late = 0

    def __init__(
        self,
        ladder: Ladder,
        width: int,
        narrow: int,
        bias: bool = True,
        init: Literal["published", "identity"] = "identity",
    ) -> None:
        super().__init__()
        self.ladder = ladder
        self.layers = ladder.layers
        self.up = nn.Linear(narrow, width, bias=bias)
        self.residual = init == "identity"
        start_(self.up)
        if self.residual:
            nn.init.zeros_(self.up.weight)

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """[B, L, D] -> [B, L, d]."""
        return self.ladder.reduce(index, tap.hidden)

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, L, D]; ``reduced`` are [B, L, d]."""
        out = self.up(self.ladder.climb(reduced, self.ladder.blocks.start(stream.extras)))
        return last + out if self.residual else out


@dataclass
class LstOptions(MethodOptions):
    """LST: a narrow transformer beside the frozen one, initialised from part of its weights."""

    kind: Literal["lst"] = "lst"
    feeds_decoder: ClassVar[bool] = True
    joint_side_network: ClassVar[bool] = True
    fits_any_tower: ClassVar[bool] = False
    reduction: int = 4
    """Divisor of every width; the number of heads stays."""
    keep: tuple[int, ...] | None = None
    """Blocks (0-based) that get a side block; default: all."""
    gate: Gate = "learned"
    """How a block's output is mixed into the side state: learned, one (not at all), none (plain sum), or a schedule:
    linear (the weight of the side state rises from 0.1 to 0.9) or inverse (1 / (1 + t), clamped to that range)."""
    gate_steps: int = 1000
    """Length of the gate schedule in training steps: the whole run for linear, one epoch for inverse."""
    after: bool = False
    """Mix after the side block instead of before it."""
    bias: bool = True
    """Biases in the projections to and from the side network (published: yes for T5, which always has them; no for
    CLIP-ViL)."""
    start: Literal["auto", "magnitude", "fisher", "random"] = "auto"
    """Initial weights of the side blocks: magnitude = the largest weights of the base; fisher = those with the largest
    squared gradients of the task's loss (published); random; auto = magnitude, or random for unsupported blocks."""
    fisher_examples: int = 1024
    """Number of training examples for the fisher start; at most one epoch."""
    init: Literal["published", "identity"] = "identity"
    """identity: start exactly at the base's zero-shot output; published: only the side network's output."""

    def __post_init__(self) -> None:
        if self.gate_steps < 1:
            raise UserError(f"--adapter.gate_steps {self.gate_steps}: must be at least 1")
        if self.fisher_examples < 1:
            raise UserError(f"--adapter.fisher_examples {self.fisher_examples}: must be at least 1")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add a side network; both views are adapted.

        With ``start="fisher"`` it has the magnitude start until :mod:`vlkit.adapters.lst.fisher` has run.

        Raises:
            UserError: the tower does not consist of transformer blocks, ``keep`` or ``reduction`` do not fit it, or
                ``start`` needs the weights inside its blocks and they are not known.
        """
        try:
            ladder = make_ladder(encoder, self.keep, self.reduction, self.gate, self.after, self.gate_steps, self.bias)
        except Opaque as error:
            raise self.refusal(str(error), "fits_any_tower") from None
        if self.start != "random":
            try:
                prune_(ladder.blocks, encoder)
            except Opaque as error:
                if self.start != "auto":
                    raise UserError(f"--adapter.start {self.start}: {error}; use --adapter.start random") from None
        width = encoder.widths[0]
        return AdaptedEncoder(encoder, LstAdapter(ladder, width, width // self.reduction, self.bias, self.init))

    def build_stacks(self, encoder: HfText, decoder: T5Decoder) -> tuple[LstT5Encoder, LstT5Decoder]:
        """Freeze both stacks and add a side encoder and a side decoder that attends to it.

        Raises:
            UserError: ``keep`` or ``reduction`` do not fit the stacks, or ``bias`` is false.
        """
        if not self.bias:
            raise UserError("--adapter.bias false: the side stacks of a T5 have biases; leave it out")
        given = self.keep, self.reduction, self.gate, self.after, self.gate_steps
        stacks = LstT5Encoder(encoder, *given), LstT5Decoder(decoder, *given, init=self.init)
        if self.start != "random":
            start_stacks(*stacks)
        return stacks

    @property
    def examples_wanted(self) -> int:
        """Number of training examples that :meth:`prepare` reads; 0 = not needed."""
        return self.fisher_examples if self.start == "fisher" else 0

    def prepare(self, model: nn.Module, losses: Iterable[Tensor], count: int) -> None:
        """Initialise the side networks in ``model`` from squared gradients; see :func:`start_from_fisher`."""
        start_from_fisher(model, LstAdapter, losses, count)
