"""Options of R2-Tuning, and the adapter that reads the last layers of a tower for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.adapters.r2.block import Pads, R2Block
from vlkit.adapters.r2.temporal import Positions
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError


class LastLayers(Adapter):
    """Reads the output of the last blocks of a tower; nothing trains and nothing is changed.

    Args:
        depth: blocks of the tower.
        steps: k, how many of its last blocks are read.
    """

    late = 0
    handoff = "pooled"
    even = True
    """The tap cache stores every layer in the same number format."""

    def __init__(self, depth: int, steps: int) -> None:
        super().__init__()
        self.layers = tuple(range(depth - steps + 1, depth + 1))

    def merge(self, reduced: list[Any], last: Tensor, stream: Stream) -> Tensor:
        """Return ``last`` unchanged."""
        return last


@dataclass
class R2Options(MethodOptions):
    """R2-Tuning: one block refines the clips of a video from the last layers of both towers, deepest first."""

    kind: Literal["r2"] = "r2"
    fits_any_tower: ClassVar[bool] = False
    running: ClassVar[tuple[str, ...]] = ("lean",)

    last: int = 4
    """Number of last layers that are read in both towers (k)."""
    heads: int = 8
    """Attention heads of the temporal layer."""
    dropout: float = 0.5
    """Dropout in the maps of frame and query tokens (published: 0.5; Charades-STA 0.35, Ego4D-NLQ 0.3)."""
    drop_path: float = 0.1
    """Probability that a residual branch of the temporal layer is dropped for an example."""
    pads: Pads = "published"
    """Whether padding of a query takes part in the maximum over its tokens (published) or is masked."""
    positions: Positions = "padded"
    """Length that places in the video are divided by: padded, the longest of the batch (published), or own."""
    lean: bool = True
    """Compute the map of the frame tokens again in backward (memory-efficient); false: plain autograd, to compare."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError(f"--adapter.last {self.last}: must be at least 1")
        if self.heads < 1:
            raise UserError(f"--adapter.heads {self.heads}: must be at least 1")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be at least 0 and less than 1")

    def build(self, encoder: StagedEncoder, reads: Reads = "tokens") -> AdaptedEncoder:
        """Freeze ``encoder`` and read its last layers.

        Raises:
            UserError: the tower has fewer layers, or no tokens.
        """
        if encoder.spatial:
            raise UserError(f"--adapter.kind r2: reads tokens, but {encoder.kind} is a convolutional tower")
        if self.last > encoder.depth:
            raise UserError(f"--adapter.last {self.last}: this tower has {encoder.depth} blocks")
        return AdaptedEncoder(encoder, LastLayers(encoder.depth, self.last))

    def build_block(self, image: StagedEncoder, text: StagedEncoder, width: int, endpoints: bool = True) -> R2Block:
        """The block for both towers, with clip states of ``width`` channels.

        Raises:
            UserError: the width does not divide by the heads.
        """
        if width % self.heads:
            raise UserError(f"--head.hidden {width}: must divide by --adapter.heads {self.heads}")
        return R2Block(
            image.widths[-1],
            text.widths[-1],
            width,
            self.last,
            self.heads,
            dropout=self.dropout,
            drop_path=self.drop_path,
            endpoints=endpoints,
            pads=self.pads,
            positions=self.positions,
            lean=self.lean,
        )
