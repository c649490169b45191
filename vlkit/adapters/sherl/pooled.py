"""SHERL in the joint space (published for CLIP towers): attention-pooled taps refine the pooled embedding."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import Adapter
from vlkit.adapters.lean.kept import TapDtype
from vlkit.adapters.sherl.blocks import LinearHead, RedundancyAggregator, l1_normalise
from vlkit.adapters.sherl.pooled_collect import Keep, collect
from vlkit.adapters.sherl.pooled_lean import attach
from vlkit.encoders.staged import Stream


class PooledSherlAdapter(Adapter):
    """Each tap is pooled by attention under the guide, and the redundancy aggregation merges the K results.

    With ``x = relu(tap)`` and ``r = W x + c``, the published token score ``(g * r) w + b`` equals
    ``x q + const`` with ``q = W^T (g * w)``, and the pooled vector ``sum_n a_n r_n`` equals
    ``W (sum_n a_n x_n) + c sum_n a_n``. So W meets one vector a sample and layer instead of one a token, and backward
    keeps each tap once; the result is the published one.

    There are two implementations of the same numbers. The plain one is :meth:`reduce` and :meth:`merge` with ``lean``
    off: autograd keeps ``relu(tap)`` of every layer. The lean one (:mod:`vlkit.adapters.sherl.pooled_lean`) keeps only
    what its own backward needs, and can do so chunk by chunk.

    Args:
        widths: channels of each tap.
        out_dim: E, width of the pooled embedding.
        hidden: H.
        layers: depths of the taps; every tap is a candidate.
        base_gate: weigh each layer's base token by ``sigmoid(gamma / 0.1)``, gamma from 1 (published for MSR-VTT).
        init: ``"identity"`` zeroes the output projection: training starts exactly at the base's embedding.
        lean: which implementation.
        tap_dtype: number format of what the lean one keeps of the taps.
        keep: which values of the taps the lean one keeps.
    """

    handoff = "pooled"
    late = 0
    eps = 1e-6
    lean = True
    tap_dtype: TapDtype = "fp32"
    keep: Keep = "auto"

    def __init__(
        self,
        widths: tuple[int, ...],
        out_dim: int,
        hidden: int,
        layers: tuple[int, ...],
        base_gate: bool = False,
        init: Literal["published", "identity"] = "published",
        gate_temperature: float = 0.1,
        lean: bool | None = None,
        tap_dtype: TapDtype | None = None,
        keep: Keep | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(layers) or not layers:
            raise ValueError(f"one width for each tap is needed, got {len(widths)} widths and taps {list(layers)}")
        self.layers = tuple(layers)
        self.reducers = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.guide_reducer = nn.Linear(out_dim, hidden)
        self.token_scores = nn.ModuleList(nn.Linear(hidden, 1) for _ in widths)
        self.base_gate = nn.Parameter(torch.ones(len(widths))) if base_gate else None
        self.gate_temperature = gate_temperature
        self.aggregator = RedundancyAggregator(hidden, self.eps)
        self.head = LinearHead(hidden, out_dim)
        for name, given in (("lean", lean), ("tap_dtype", tap_dtype), ("keep", keep)):
            if given is not None:
                setattr(self, name, given)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """The tap as [B, L, D], behind a ReLU in the plain implementation: all that forward and backward need of it."""
        x = tap.hidden.flatten(2).transpose(1, 2) if tap.hidden.dim() == 4 else tap.hidden
        return x if self.lean else F.relu(x)

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, E]: ``last`` plus the merged layers; ``reduced`` are K tensors [B, L, D_k]."""
        return self.join([self.collect(reduced, last, stream)])

    def collect(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Any:
        """What :meth:`join` needs of a chunk of samples; the lean one empties ``reduced`` on the way."""
        return collect(self, reduced, last, stream) if self.lean else self._merge(reduced, last, stream)

    def join(self, parts: list[Any]) -> Tensor:
        """[B, E] of the chunks together; see :meth:`Adapter.join`."""
        return attach(self, [piece for part in parts for piece in part]) if self.lean else torch.cat(parts)

    # --- the plain implementation ---

    def _merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        guide = self.guide_reducer(F.relu(last))  # [B, H]
        pooled = [self._pool(i, x, guide, stream) for i, x in enumerate(reduced)]
        return self.refine(guide, torch.stack(pooled, dim=1), last)

    def refine(self, guide: Tensor, candidates: Tensor, last: Tensor) -> Tensor:
        """Merge the K pooled layers [B, K, H] under the guide [B, H] and add the result to ``last`` [B, E]."""
        # Raw residual streams are not normed: in half precision the products of these few vectors would overflow.
        precision = self.aggregator.score.weight.dtype
        with torch.autocast(candidates.device.type, enabled=False):
            merged = self.aggregator(guide.to(precision), candidates.to(precision))
        return self.head(merged) + last

    def _pool(self, index: int, x: Tensor, guide: Tensor, stream: Stream) -> Tensor:
        """Attention pooling of one layer under the guide, plus its base token: [B, L, D] -> [B, H]."""
        reducer, score = self.reducers[index], self.token_scores[index]
        weighted_guide = guide * score.weight[0]
        query = weighted_guide @ reducer.weight  # [B, D]
        scores = torch.einsum("bld,bd->bl", x, query) + (weighted_guide @ reducer.bias + score.bias).unsqueeze(1)
        if stream.mask is not None and x.shape[1] == stream.mask.shape[1]:
            scores = scores * stream.mask
        attention = l1_normalise(F.relu(scores), self.eps)  # [B, L]
        base, share = _base_token(x, stream), attention.sum(1, keepdim=True)
        factor = 1.0 if self.base_gate is None else self.base_factors()[index]
        mixed = torch.einsum("bl,bld->bd", attention, x) + factor * base
        return mixed @ reducer.weight.T + (share + factor) * reducer.bias

    def base_factors(self) -> Tensor:
        """The factor of each layer's base token, [K]."""
        if self.base_gate is None:
            return torch.ones_like(self.aggregator.score.bias).expand(len(self.layers))
        return torch.sigmoid(self.base_gate / self.gate_temperature)


def _base_token(x: Tensor, stream: Stream) -> Tensor:
    """The token that sums up the sequence, [B, D]: the tower's summary position, else the mean over real tokens."""
    if stream.summary is not None:
        return x[torch.arange(len(x), device=x.device), stream.summary]
    if stream.mask is None:
        return x.mean(1)
    mask = stream.mask.unsqueeze(-1).to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1).clamp_min(1)
