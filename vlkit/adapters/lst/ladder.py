"""The ladder of LST: narrow blocks beside a frozen tower, each of which reads one frozen block's output.

Notation and sources: :mod:`vlkit.adapters.lst.method`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.encoders.blocks.narrow import NarrowBlocks
from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError

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

    def at_step(self, step: int) -> None:
        """``step`` optimizer steps are done; see :meth:`vlkit.engine.training.Training.tell_step`."""
        if self.kind in SCHEDULED:
            self.steps.fill_(step)

    def _mu(self) -> Tensor:
        if self.gate is not None:
            return torch.sigmoid(self.gate / TEMPERATURE)
        progress = self.steps.to(self.weight.dtype) / self.span
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


def make_ladder(
    encoder: StagedEncoder,
    keep: tuple[int, ...] | None = None,
    reduction: int = 4,
    gate: Gate = "learned",
    after: bool = False,
    span: int = 1,
    bias: bool = True,
) -> Ladder:
    """A ladder that fits ``encoder``; see :class:`Ladder` and :class:`vlkit.adapters.lst.method.LstOptions`.

    Raises:
        UserError: as :meth:`vlkit.adapters.lst.method.LstOptions.build`.
    """
    kept = tuple(range(encoder.depth)) if keep is None else tuple(keep)
    if not kept or any(not 0 <= i < encoder.depth for i in kept) or list(kept) != sorted(set(kept)):
        raise UserError(
            f"--adapter.keep {list(kept)}: give ascending block numbers from 0..{encoder.depth - 1}, at least one"
        )
    blocks = encoder.narrow(kept, reduction)
    width = encoder.widths[0]
    return Ladder(width, blocks, width // reduction, gate, after, bias, span)
