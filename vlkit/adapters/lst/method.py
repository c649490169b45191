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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.adapters.lst.fisher import start_from_fisher
from vlkit.adapters.lst.pruning import prune_
from vlkit.encoders.blocks.anatomy import Opaque
from vlkit.encoders.blocks.narrow import NarrowBlocks
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.errors import UserError

if TYPE_CHECKING:
    from vlkit.adapters.lst.t5 import LstT5Decoder, LstT5Encoder

Gate = Literal["learned", "one", "none", "linear", "inverse"]
SCHEDULED = ("linear", "inverse")
TEMPERATURE = 0.1


class Rung(nn.Linear):
    """One step of the ladder: the projection of a block's output, and its mix with the side state.

    Args:
        width: D.
        narrow: d.
        bias: whether the projection has a bias.
        gate: ``learned``: mu = sigmoid(alpha / 0.1), alpha starts at 0; ``none``: plain sum; ``linear``: mu rises from
            0.1 to 0.9 over ``span`` training steps; ``inverse``: mu = 1 / (1 + t), clamped to 0.1 .. 0.9, with t =
            training steps / ``span``.
        span: number of training steps of a schedule.
    """

    steps: Tensor

    def __init__(self, width: int, narrow: int, bias: bool = True, gate: Gate = "learned", span: int = 1) -> None:
        super().__init__(width, narrow, bias=bias)
        self.kind, self.span = gate, span
        self.gate = nn.Parameter(torch.zeros(1)) if gate == "learned" else None
        if gate in SCHEDULED:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def mix(self, side: Tensor, projected: Tensor) -> Tensor:
        """Both [B, L, d]; a projection with fewer rows (only the text of text plus images) is padded with zeros."""
        missing = side.shape[1] - projected.shape[1]
        if missing:
            projected = F.pad(projected, (0, 0, 0, missing))
        if self.kind == "none":
            return side + projected
        mu = self._mu()
        return mu * side + (1 - mu) * projected

    def _mu(self) -> Tensor:
        if self.gate is not None:
            return torch.sigmoid(self.gate / TEMPERATURE)
        progress = self.steps.to(self.weight.dtype) / self.span
        if self.training:
            self.steps += 1
        mu = 0.1 + 0.8 * progress if self.kind == "linear" else 1 / (1 + progress)
        return mu.clamp(0.1, 0.9)


class Ladder(nn.Module):
    """The side network without its output projection: reduced block outputs in, side state out.

    Args:
        width: D.
        blocks: narrow blocks of the kept layers, keyed by layer.
        narrow: d.
        gate: see :class:`Rung`; ``one``: mu = 1, only the embeddings enter and no block output.
        after: mix after the side block instead of before it.
        bias: whether the projections have a bias (published: yes for T5, no for CLIP-ViL).
        span: see :class:`Rung`.

    Attributes:
        layers: depths to tap: 0 and the outputs of the kept blocks.
    """

    rungs: Any  # nn.ModuleDict of Rung

    def __init__(
        self,
        width: int,
        blocks: NarrowBlocks,
        narrow: int,
        gate: Gate = "learned",
        after: bool = False,
        bias: bool = True,
        span: int = 1,
    ) -> None:
        super().__init__()
        kept = tuple(int(i) for i in blocks)
        self.layers = (0,) if gate == "one" else (0, *(i + 1 for i in kept))
        self.first = nn.Linear(width, narrow, bias=bias)
        self.rungs = nn.ModuleDict(
            {} if gate == "one" else {str(i): Rung(width, narrow, bias, gate, span) for i in kept}
        )
        self.blocks = blocks
        self.norm = blocks.final_norm()
        self.after = after
        for layer in (self.first, *self.rungs.values()):
            start_(layer)

    def reduce(self, index: int, hidden: Tensor) -> Tensor:
        """Tap number ``index``, [B, L, D] -> [B, L, d]."""
        if index == 0:
            return self.first(hidden)
        return self.rungs[str(self.layers[index] - 1)](hidden)

    def climb(self, reduced: list[Tensor], arguments: dict[str, Any]) -> Tensor:
        """Run the side network.

        Args:
            reduced: results of :meth:`reduce`, shallow to deep.
            arguments: from ``blocks.start``.

        Returns:
            [B, L, d], after the side norm.
        """
        side, *rest = reduced
        inputs = dict(zip(self.rungs, rest, strict=True))
        for key in self.blocks:
            if key in inputs and not self.after:
                side = self.rungs[key].mix(side, inputs[key])
            side, arguments = self.blocks.run(int(key), side, arguments)
            if key in inputs and self.after:
                side = self.rungs[key].mix(side, inputs[key])
        return self.norm(side)


def start_(layer: nn.Linear) -> None:
    """Published initialisation of the projections: N(0, 0.01), zero bias."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


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
            ladder = make_ladder(encoder, self.keep, self.reduction, self.gate, self.after, self.gate_steps)
        except Opaque as error:
            raise self.refusal(str(error), "fits_any_tower") from None
        if self.start != "random":
            try:
                prune_(ladder.blocks, encoder)
            except Opaque as error:
                if self.start != "auto":
                    raise UserError(f"--adapter.start {self.start}: {error}; use --adapter.start random") from None
        width = encoder.widths[0]
        return AdaptedEncoder(encoder, LstAdapter(ladder, width, width // self.reduction, init=self.init))

    def build_stacks(self, encoder: HfText, decoder: T5Decoder) -> tuple[LstT5Encoder, LstT5Decoder]:
        """Freeze both stacks and add a side encoder and a side decoder that attends to it.

        Raises:
            UserError: ``keep`` or ``reduction`` do not fit the stacks.
        """
        from vlkit.adapters.lst.t5 import LstT5Decoder, LstT5Encoder, start_stacks  # imports this module

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


def make_ladder(
    encoder: StagedEncoder,
    keep: tuple[int, ...] | None = None,
    reduction: int = 4,
    gate: Gate = "learned",
    after: bool = False,
    span: int = 1,
    bias: bool = True,
) -> Ladder:
    """A ladder that fits ``encoder``; see :class:`Ladder` and :class:`LstOptions`.

    Raises:
        UserError: as :meth:`LstOptions.build`.
    """
    kept = tuple(range(encoder.depth)) if keep is None else tuple(keep)
    if not kept or any(not 0 <= i < encoder.depth for i in kept) or list(kept) != sorted(set(kept)):
        raise UserError(
            f"--adapter.keep {list(kept)}: give ascending block numbers from 0..{encoder.depth - 1}, at least one"
        )
    blocks = encoder.narrow(kept, reduction)
    width = encoder.widths[0]
    return Ladder(width, blocks, width // reduction, gate, after, bias, span)
