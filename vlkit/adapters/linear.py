"""The control with no adapter at all: the frozen base as it is, only the task head trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.encoders.staged import StagedEncoder, Stream


class NoAdapter(Adapter):
    """Taps nothing and changes nothing."""

    layers = ()
    late = 0
    handoff = "pooled"

    def merge(self, reduced: list[Any], last: Tensor, stream: Stream) -> Tensor:
        """``last`` as it came."""
        return last


@dataclass
class LinearOptions(MethodOptions):
    """Linear probe: the frozen base, only the task head trains."""

    kind: Literal["linear"] = "linear"

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder``; both views are the base's own."""
        return AdaptedEncoder(encoder, NoAdapter())
