"""SHERL on a convolutional grid (flavour ``conv``): the merged map replaces the input of the last blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.hooks import Adapter
from vlkit.adapters.sherl.blocks import ConvHead, ConvReducer, LateGate, RedundancyAggregator
from vlkit.adapters.sherl.tokens import check_taps
from vlkit.encoders.staged import Stream

EPS = 1e-8


class ConvSherlAdapter(Adapter):
    """Like :class:`vlkit.adapters.sherl.tokens.SherlAdapter`, with maps pooled to the deepest size and batch norm.

    Batch norm needs the whole batch, so this is a :class:`vlkit.adapters.lean.recompute.Coupled` adapter.

    Args:
        widths: channels of each tap, shallow to deep; at least two.
        width: C, channels of the state that enters the late route.
        hidden: H.
        layers: depths of the taps.
        late: number of late blocks.
        init: see :class:`vlkit.adapters.sherl.tokens.SherlAdapter`.
        gate_temperature: temperature of the late gate.
    """

    handoff = "tokens"

    def __init__(
        self,
        widths: tuple[int, ...],
        width: int,
        hidden: int,
        layers: tuple[int, ...],
        late: int = 1,
        init: Literal["published", "identity"] = "published",
        gate_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        check_taps(widths, layers)
        self.layers, self.late = tuple(layers), late
        self.reducers = nn.ModuleList(ConvReducer(w, hidden) for w in widths)
        self.aggregator = RedundancyAggregator(hidden, EPS)
        self.head = ConvHead(hidden, width, scaled=init == "identity")
        self.gate = LateGate(gate_temperature, offset=1.0 if init == "identity" else 0.0)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """Return the grid [B, C, h, w] unchanged: only :meth:`merge` knows the deepest size."""
        return tap.hidden

    def compact(self, taps: list[Stream], stream: Stream) -> list[Stream]:
        """Maps of the deepest size, up to 256 times smaller than the first map of a tower.

        Half of a pooled map stands for the map: pooling a map of the deepest size doubles it.
        """
        pooled = self.gather([tap.hidden for tap in taps], stream.hidden)
        # The hand-off's own state is stored once, in its finer format.
        return [
            tap if tap.hidden is stream.hidden else tap.replace(hidden=x / 2)
            for tap, x in zip(taps, pooled, strict=True)
        ]

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, C, n, n], the shape of ``last``; ``reduced`` are K grids."""
        return self.merge_gathered(self.gather(reduced, last), last)

    def gather(self, taps: list[Tensor], last: Tensor) -> list[Tensor]:
        """Grids [B, C, h, w] -> grids of the deepest size."""
        reducers = cast("Iterable[ConvReducer]", self.reducers)
        size = (last.shape[-2], last.shape[-1])
        return [r.pool(x, size) for r, x in zip(reducers, taps, strict=True)]

    def merge_gathered(self, gathered: list[Tensor], last: Tensor) -> Tensor:
        """Grids [B, C, n, n] of the deepest size -> ``last`` merged with them."""
        *candidates, guide = (r(x) for r, x in zip(self.reducers, gathered, strict=True))
        out = self.aggregator(guide, torch.stack(candidates, dim=-2))
        return self.gate(self.head(out.transpose(1, 2).unflatten(2, last.shape[-2:])), last)
