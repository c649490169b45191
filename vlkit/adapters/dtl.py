"""DTL, disentangled transfer learning (AAAI 2024): a low-rank side network that is written into the late blocks.

With ``x_i`` the state that enters block i, ``A_i`` [r, D] and ``B_i`` [D, r]:

    z += B_i A_i x_i                                     before every block
    x_{i+1} = block_i(x_i) + z sigmoid(beta z)           for the late blocks only

Early blocks keep nothing but their input, which ``A_i`` reads; late blocks are differentiated through. DTL+ sends the
image cells of what is written through a depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError


class LowRank(nn.Module):
    """``B A x``: [..., D] -> [..., D] through rank r; A starts Kaiming-uniform, B at 0."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)


class DtlAdapter(Adapter):
    """The side network.

    In a tower of stages ``z`` restarts wherever the width changes: a block whose input and output differ in width is
    not read, and the convolution is another one in each stage.

    Args:
        widths: of the tower, depth + 1 of them.
        late: number of last blocks that carry gradient.
        rank: r.
        beta: steepness; at 100 nearly a ReLU.
        kernel: side of the depthwise convolution (DTL+); 0 = none.
        collect: blocks that are read; default: all that keep their width in a stage that is written into.
        grid_of: the tower's :meth:`~vlkit.encoders.staged.StagedEncoder.grid`, for DTL+ on tokens.
        add: the late blocks that are written into; default: all.
    """

    handoff = "tokens"

    reads: Any  # nn.ModuleDict of LowRank

    def __init__(
        self,
        widths: tuple[int, ...],
        late: int,
        rank: int = 2,
        beta: float = 100.0,
        kernel: int = 0,
        collect: tuple[int, ...] | None = None,
        grid_of: Callable[[Stream], tuple[int, int] | None] | None = None,
        add: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        depth = len(widths) - 1
        self.add = frozenset(range(depth - late, depth) if add is None else add)
        self.late, self.beta, self.grid_of = late, beta, grid_of
        # Depth -> stage; a stage ends where the width changes.
        self._stage = [0]
        for i in range(depth):
            self._stage.append(self._stage[-1] + (widths[i] != widths[i + 1]))
        even = [i for i in range(depth) if widths[i] == widths[i + 1]]
        written = {self._stage[i] for i in even if i in self.add}
        # What is read in a stage that is never written into would be of no use.
        collect = tuple(i for i in even if self._stage[i] in written and (collect is None or i in collect))
        self.layers = tuple(i for i in collect if i < depth - late)
        self.reads = nn.ModuleDict({str(i): LowRank(widths[i], rank) for i in collect})
        width_of = {self._stage[i]: widths[i] for i in collect} if kernel else {}
        self.fusions = nn.ModuleDict(
            {str(stage): nn.Conv2d(w, w, kernel, padding="same", groups=w, bias=False) for stage, w in width_of.items()}
        )

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """``A x``: [B, L, D] -> [B, L, r] (grids row by row)."""
        return self.reads[str(self.layers[index])].down(_tokens(tap.hidden))

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Stream:
        """The state as it is, with ``z`` so far beside it (None: nothing was read in this stage yet)."""
        stage = self._stage[len(self._stage) - 1 - self.late]
        side = None
        for i, read in zip(self.layers, reduced, strict=True):
            if self._stage[i] == stage:
                written = self.reads[str(i)].up(read)
                side = written if side is None else side + written
        return stream.replace(side=side)

    def late_block(self, i: int, stream: Stream, block: Callable[[Stream], Stream]) -> Stream:
        """Read, run the block, write."""
        side = stream.side
        if str(i) in self.reads:
            read = self.reads[str(i)]
            written = read.up(read.down(_tokens(stream.hidden)))
            side = written if side is None else side + written
        if self._stage[i] != self._stage[i + 1]:
            side = None
        out = block(stream)
        if side is None:
            return out.replace(side=None)
        if i not in self.add:
            return out.replace(side=side)
        return out.replace(hidden=out.hidden + self._write(side, out, self._stage[i + 1]), side=side)

    def _write(self, side: Tensor, stream: Stream, stage: int) -> Tensor:
        """``z sigmoid(beta z)``, convolved over the image cells in DTL+; shaped like ``stream.hidden``."""
        # beta z is large: in half precision its sigmoid would be a step.
        with torch.autocast(side.device.type, enabled=False):
            precision = self.beta * (side if side.dtype == torch.float64 else side.float())
            written = F.silu(precision) / self.beta
        written = written.to(stream.hidden.dtype)
        if stream.hidden.dim() == 4:
            grid = written.transpose(1, 2).reshape(stream.hidden.shape)
            return self.fusions[str(stage)](grid) if self.fusions else grid
        if not self.fusions:
            return written
        grid_size = None if self.grid_of is None else self.grid_of(stream)
        assert grid_size is not None  # fusions are built for towers of image cells alone
        rows, columns = grid_size
        first = written.shape[1] - rows * columns
        others, cells = written.split([first, rows * columns], dim=1)
        cells = cells.transpose(1, 2).unflatten(2, (rows, columns))
        return torch.cat([others, self.fusions[str(stage)](cells).flatten(2).transpose(1, 2)], dim=1)


def _tokens(hidden: Tensor) -> Tensor:
    return hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden


@dataclass
class DtlOptions(MethodOptions):
    """DTL: low-rank reads of every block, summed up and written into the late ones."""

    kind: Literal["dtl"] = "dtl"
    rank: int = 2
    """Rank of each block's read."""
    late: int | None = None
    """Number of last blocks that are written into, and so carry gradient; default: half of them (published)."""
    collect: tuple[int, ...] | None = None
    """Blocks (0-based) that are read; default: all."""
    beta: float = 100.0
    """Steepness of what is written: z sigmoid(beta z)."""
    kernel: int = 0
    """Side of a depthwise convolution over the image cells (DTL+; published: 3 to 5); 0 = none; none on texts."""

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("kernel", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be at least {least}")
        if self.beta <= 0:
            raise UserError(f"--adapter.beta {self.beta:g}: must be more than 0")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and put the side network on it; both views are adapted. It starts as the frozen base.

        Raises:
            UserError: ``late`` or ``collect`` do not fit the tower.
        """
        depth = encoder.depth
        late = max(1, depth // 2) if self.late is None else self.late
        if not 1 <= late <= depth:
            raise UserError(f"--adapter.late {late}: this tower has {depth} blocks; give 1..{depth}")
        collect = tuple(range(depth)) if self.collect is None else tuple(self.collect)
        if any(not 0 <= i < depth for i in collect) or list(collect) != sorted(set(collect)):
            raise UserError(f"--adapter.collect {list(collect)}: give rising block numbers from 0..{depth - 1}")
        if not collect or collect[0] > depth - late:
            raise UserError(
                f"--adapter.collect {list(collect)}: nothing is read before block {depth - late}, the first that is "
                "written into; start earlier, or give a smaller --adapter.late"
            )
        cells = _has_grid(encoder)
        adapter = DtlAdapter(
            encoder.widths, late, self.rank, self.beta, self.kernel if cells else 0, collect, encoder.grid
        )
        if not adapter.reads:
            if not encoder.keeps_width:
                raise UserError(
                    "--adapter.kind dtl: every block of this tower changes its width, so there is none to write into; "
                    "take sherl or unipt"
                )
            raise UserError(f"--adapter.late {late}: no block there keeps its width; give a larger one")
        return AdaptedEncoder(encoder, adapter)


def _has_grid(encoder: StagedEncoder) -> bool:
    return encoder.spatial or type(encoder).grid is not StagedEncoder.grid
