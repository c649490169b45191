"""Linear probe, the baseline without an adapter: the base stays frozen and only the task head trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.encoders.staged import StagedEncoder, Stream


class NoAdapter(Adapter):
    """An adapter without taps that changes nothing."""

    layers = ()
    late = 0
    handoff = "pooled"

    def merge(self, reduced: list[Any], last: Tensor, stream: Stream) -> Tensor:
        """Return ``last`` unchanged."""
        return last


@dataclass
class LinearOptions(MethodOptions):
    """Linear probe: the base is frozen, only the task head trains."""

    kind: Literal["linear"] = "linear"

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder``; both views are those of the frozen base."""
        return AdaptedEncoder(encoder, NoAdapter())
