"""DTL, disentangled transfer learning (AAAI 2024): a low-rank side network whose output is added to the late blocks.

With ``x_i`` the state that enters block i, ``A_i`` [r, D] and ``B_i`` [D, r]:

    z += B_i A_i x_i                                     before every block
    x_{i+1} = block_i(x_i) + z sigmoid(beta z)           for the late blocks only

Backward needs only the inputs of early blocks, which ``A_i`` reads; gradient passes through the late blocks. DTL+
applies a depthwise convolution to the image patches of the added term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.adapters.saved.mode import Saved, saved_option
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

    In a tower with stages, ``z`` restarts wherever the width changes: a block whose input and output differ in width
    is not read, and each stage has its own convolution.

    Args:
        widths: depth + 1 widths of the tower.
        late: number of last blocks that carry gradient.
        rank: r.
        beta: steepness of the activation; at 100 it is nearly a ReLU.
        kernel: side of the depthwise convolution (DTL+); 0 = none.
        collect: blocks to read; default: all blocks that keep their width in a stage with a block in ``add``.
        grid_of: the tower's :meth:`~vlkit.encoders.staged.StagedEncoder.grid`, for DTL+ on tokens.
        add: late blocks whose output gets the added term; default: all late blocks.
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
        # Reads in a stage without a late block would never be used.
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
        """The unchanged state, with the current ``z`` in ``side`` (None: this stage has no read yet)."""
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
        # beta z is large: in half precision its sigmoid would become a step function.
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
    """DTL: low-rank projections of every block's input, summed and added to the late blocks."""

    kind: Literal["dtl"] = "dtl"
    gradient_in_base: ClassVar[bool] = True
    running: ClassVar[tuple[str, ...]] = ("saved",)
    rank: int = 2
    """Rank of each block's projection."""
    late: int | None = None
    """Number of last blocks that get the added term and carry gradient; default: half of the blocks (published)."""
    collect: tuple[int, ...] | None = None
    """Blocks (0-based) whose input is read; default: all."""
    beta: float = 100.0
    """Steepness of the added term z sigmoid(beta z)."""
    kernel: int = 0
    """Side of a depthwise convolution over the image patches (DTL+; published: 3 to 5); 0 = none; ignored on texts."""
    saved: Saved = saved_option()
    """Format of the saved activations of the late blocks: fp32 (unchanged), int8 or int4. The forward is always exact;
    the gradient is rounded."""

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("kernel", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be at least {least}")
        if self.beta <= 0:
            raise UserError(f"--adapter.beta {self.beta:g}: must be more than 0")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add the side network; both views are adapted. Training starts at the frozen base.

        Raises:
            UserError: ``late`` or ``collect`` do not fit the tower.
        """
        depth = encoder.depth
        late = max(1, depth // 2) if self.late is None else self.late
        if not 1 <= late <= depth:
            raise UserError(f"--adapter.late {late}: this tower has {depth} blocks; give 1..{depth}")
        collect = tuple(range(depth)) if self.collect is None else tuple(self.collect)
        if any(not 0 <= i < depth for i in collect) or list(collect) != sorted(set(collect)):
            raise UserError(f"--adapter.collect {list(collect)}: give ascending block numbers from 0..{depth - 1}")
        if not collect or collect[0] > depth - late:
            raise UserError(
                f"--adapter.collect {list(collect)}: no block before block {depth - late}, the first late block, is "
                "read; start earlier, or give a smaller --adapter.late"
            )
        cells = _has_grid(encoder)
        adapter = DtlAdapter(
            encoder.widths, late, self.rank, self.beta, self.kernel if cells else 0, collect, encoder.grid
        )
        if not adapter.reads:
            if not encoder.keeps_width:
                raise UserError(
                    "--adapter.kind dtl: every block of this tower changes its width, and DTL needs one that keeps it; "
                    "use sherl or unipt"
                )
            raise UserError(f"--adapter.late {late}: none of the late blocks keeps its width; give a larger number")
        return AdaptedEncoder(encoder, adapter, saved=self.saved)


def _has_grid(encoder: StagedEncoder) -> bool:
    return encoder.spatial or type(encoder).grid is not StagedEncoder.grid
