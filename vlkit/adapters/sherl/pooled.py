"""SHERL on the pooled embedding (published for CLIP towers): attention-pooled taps refine it in the joint space."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.hooks import Adapter
from vlkit.adapters.sherl.blocks import LinearHead, RedundancyAggregator, l1_normalise, refine
from vlkit.encoders.staged import Stream

EPS = 1e-6


class PooledSherlAdapter(Adapter):
    """Pool each tap by attention under the guide, then merge the K results with the redundancy aggregation.

    With ``x = relu(tap)`` and ``r = W x + c``, the published token score ``(g * r) w + b`` equals
    ``x q + const`` with ``q = W^T (g * w)``, and the pooled vector ``sum_n a_n r_n`` equals
    ``W (sum_n a_n x_n) + c sum_n a_n``. So W is applied to one vector per sample and layer instead of one per token,
    and backward reads each tap once; the result equals the published one.

    This is the plain implementation: autograd saves ``relu(tap)`` of every layer. The default for training is
    :class:`vlkit.adapters.sherl.pooled_lean.LeanPooledSherlAdapter`, with the same weights and the same numbers.

    Args:
        widths: channels of each tap.
        out_dim: E, width of the pooled embedding.
        hidden: H.
        layers: depths of the taps; every tap is a candidate.
        base_gate: scale each layer's base token by ``sigmoid(gamma / 0.1)``; gamma starts at 1 (published for MSR-VTT).
        init: ``"identity"`` zeroes the output projection: training starts exactly at the base's embedding.
        gate_temperature: temperature of the base tokens' gates.
    """

    handoff = "pooled"
    late = 0

    reducers: Any  # nn.ModuleList of nn.Linear
    token_scores: Any  # the same

    def __init__(
        self,
        widths: tuple[int, ...],
        out_dim: int,
        hidden: int,
        layers: tuple[int, ...],
        base_gate: bool = False,
        init: Literal["published", "identity"] = "published",
        gate_temperature: float = 0.1,
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
        self.aggregator = RedundancyAggregator(hidden, EPS)
        self.head = LinearHead(hidden, out_dim)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """``relu(tap)`` as [B, L, D]; neither forward nor backward needs the tap itself."""
        return F.relu(tokens_of(tap))

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Any:
        """[B, E]: ``last`` plus the merged layers; ``reduced`` are K tensors [B, L, D_k]."""
        guide = self.guide_reducer(F.relu(last))  # [B, H]
        pooled = [self._pool(i, x, guide, stream) for i, x in enumerate(reduced)]
        return refine(self.aggregator, self.head, guide, torch.stack(pooled, dim=1), last)

    def _pool(self, index: int, x: Tensor, guide: Tensor, stream: Stream) -> Tensor:
        """Attention pooling of one layer under the guide, plus its base token: [B, L, D] -> [B, H]."""
        reducer, score = self.reducers[index], self.token_scores[index]
        weighted_guide = guide * score.weight[0]
        query = weighted_guide @ reducer.weight  # [B, D]
        scores = torch.einsum("bld,bd->bl", x, query) + (weighted_guide @ reducer.bias + score.bias).unsqueeze(1)
        if stream.mask is not None and x.shape[1] == stream.mask.shape[1]:
            scores = scores * stream.mask
        attention = l1_normalise(F.relu(scores), EPS)  # [B, L]
        base, share = _base_token(x, stream), attention.sum(1, keepdim=True)
        factor = 1.0 if self.base_gate is None else torch.sigmoid(self.base_gate / self.gate_temperature)[index]
        mixed = torch.einsum("bl,bld->bd", attention, x) + factor * base
        return mixed @ reducer.weight.T + (share + factor) * reducer.bias


def tokens_of(tap: Stream) -> Tensor:
    """The tap as [B, L, D]; grids are flattened row by row."""
    return tap.hidden.flatten(2).transpose(1, 2) if tap.hidden.dim() == 4 else tap.hidden


def _base_token(x: Tensor, stream: Stream) -> Tensor:
    """The base token of the sequence, [B, D]: the tower's summary token, or the mean over real tokens."""
    if stream.summary is not None:
        return x[torch.arange(x.shape[0], device=x.device), stream.summary]
    if stream.mask is None:
        return x.mean(1)
    mask = stream.mask.unsqueeze(-1).to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1).clamp_min(1)
