"""The forward half of lean SHERL in the joint space: pool a chunk of samples and keep what backward needs.

See :mod:`vlkit.adapters.sherl.pooled_lean` for the whole and its notation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.adapters.lean.chunks import samples_of
from vlkit.adapters.lean.kept import Kept, TapDtype, assumed_rows, has_values
from vlkit.encoders.staged import Stream

if TYPE_CHECKING:
    from vlkit.adapters.sherl.pooled import PooledSherlAdapter

Keep = Literal["auto", "active", "all"]
"""``active``: the values with a gradient; ``all``: whole taps, as they are; ``auto``: active on the CPU, all on CUDA,
where finding the active ones makes the host wait for the device."""

TOGETHER = 32  # samples whose active rows lie in one matrix: products with it do their work for all samples


class Rows:
    """The tokens of one layer that have a weight, [R, D], of B samples.

    Args:
        x: [B, L, D], behind the ReLU.
        scores: [B, L], at least 0.
        tap_dtype: number format.
    """

    def __init__(self, x: Tensor, scores: Tensor, tap_dtype: TapDtype) -> None:
        flat = scores.reshape(-1)
        if has_values(flat):
            self._index = flat.nonzero().squeeze(1)
        else:
            self._index = torch.arange(assumed_rows(len(flat)), device=flat.device)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, self._index)
        self._rows, self._shape = Kept(rows, tap_dtype, positive=True, sparse=True), scores.shape

    def open(self, dtype: torch.dtype) -> None:
        self._x = self._rows.open(dtype)
        self._owner = torch.div(self._index, self._shape[1], rounding_mode="floor")  # [R], the sample of each row

    def along(self, u: Tensor) -> Tensor:
        """``x u`` for one vector a sample: [B, D] -> [B, L]; 0 where no row is kept."""
        products = (u @ self._x.T).gather(0, self._owner.unsqueeze(0)).squeeze(0)
        return u.new_zeros(self._shape).view(-1).index_copy_(0, self._index, products).view(self._shape)

    def sum(self, weights: Tensor) -> Tensor:
        """``sum_l weights x`` over the kept rows: [B, L] -> [B, D]."""
        chosen = weights.reshape(-1).index_select(0, self._index).unsqueeze(0)
        spread = weights.new_zeros(self._shape[0], len(self._index)).scatter_(0, self._owner.unsqueeze(0), chosen)
        return spread @ self._x


class Whole:
    """All tokens of one layer, [B, L, D]; same use as :class:`Rows`."""

    def __init__(self, tap: Tensor, tap_dtype: TapDtype) -> None:
        # What is kept as it is needs no copy behind the ReLU.
        self._tap = Kept(F.relu(tap) if tap_dtype == "int8" else tap, tap_dtype, positive=True)

    def open(self, dtype: torch.dtype) -> None:
        self._x = F.relu(self._tap.open(dtype))

    def along(self, u: Tensor) -> Tensor:
        return torch.bmm(self._x, u.unsqueeze(2)).squeeze(2)

    def sum(self, weights: Tensor) -> Tensor:
        return torch.bmm(weights.unsqueeze(1), self._x).squeeze(1)


@dataclass
class Layer:
    """What one layer of a chunk leaves behind: ``m`` [B, D], ``s`` [B, L], ``S`` [B, 1], and for backward the tokens,
    the base token [B, D] (if it has a learned factor) and the tap (if it asks for a gradient)."""

    mean: Tensor
    scores: Tensor
    total: Tensor
    tokens: Rows | Whole | None = None
    base: Tensor | None = None
    tap: Tensor | None = None

    @property
    def attention(self) -> Tensor:
        """``a``, [B, L]."""
        return self.scores / self.total


@dataclass
class Part:
    """A chunk of samples: the tower's own embedding [B, E], ``P`` [B, L] of each length, and the K layers."""

    last: Tensor
    layers: list[Layer | None]
    stream: Stream


def collect(adapter: PooledSherlAdapter, taps: list[Tensor], last: Tensor, stream: Stream) -> list[Part]:
    """Pool the taps of a chunk and keep what backward needs.

    Args:
        adapter: whose weights to use.
        taps: K raw taps [B, L, D_k]; the list is emptied, so that each can be freed when it is done.
        last: [B, E], the tower's pooled embedding.
        stream: mask and summary positions.

    Returns:
        One part or several, in order.
    """
    trains = torch.is_grad_enabled()
    wants_tap_gradient = trains and any(tap.requires_grad for tap in taps)
    active = trains and (adapter.keep == "active" or (adapter.keep == "auto" and last.device.type != "cuda"))
    if active and len(last) > TOGETHER and not wants_tap_gradient:
        return _collect_slices(adapter, taps, last, stream)
    light = stream.replace(hidden=None, extras={})
    part = Part(last, [], light)
    dtype = adapter.guide_reducer.weight.dtype
    with torch.no_grad(), torch.autocast(last.device.type, enabled=False):
        guide = guide_of(adapter, last)
        factors = adapter.base_factors().unbind()
        taps.reverse()
        for i in range(len(taps)):
            tap = taps.pop()
            layer, x = _pool(adapter, i, F.relu(tap).to(dtype), guide, factors[i], light)
            if trains:
                kept = Rows(x, layer.scores, adapter.tap_dtype) if active else Whole(tap.detach(), adapter.tap_dtype)
                layer.tokens, layer.tap = kept, tap if wants_tap_gradient else None
            part.layers.append(layer)
            del tap, x
    return [part]


def _collect_slices(adapter: PooledSherlAdapter, taps: list[Tensor], last: Tensor, stream: Stream) -> list[Part]:
    parts = []
    for start in range(0, len(last), TOGETHER):
        at = slice(start, start + TOGETHER)
        parts += collect(adapter, [tap[at] for tap in taps], last[at], samples_of(stream, at))
    taps.clear()
    return parts


def _pool(
    adapter: PooledSherlAdapter, i: int, x: Tensor, guide: Tensor, factor: Tensor, stream: Stream
) -> tuple[Layer, Tensor]:
    reducer, score = adapter.reducers[i], adapter.token_scores[i]
    weighted = guide * score.weight[0]
    query, constant = weighted @ reducer.weight, weighted @ reducer.bias + score.bias
    scores = torch.baddbmm(constant.view(-1, 1, 1), query.unsqueeze(1), x.transpose(1, 2)).squeeze(1)  # [B, L]
    if stream.mask is not None and x.shape[1] == stream.mask.shape[1]:
        scores = scores * stream.mask
    scores = F.relu(scores)
    total = scores.sum(1, keepdim=True) + adapter.eps
    base = base_weights(x, stream)
    mean = torch.bmm(torch.addcmul(scores / total, factor, base).unsqueeze(1), x).squeeze(1)
    layer = Layer(mean, scores, total)
    if adapter.base_gate is not None:
        layer.base = torch.bmm(base.unsqueeze(1), x).squeeze(1)
    return layer, x


def base_weights(x: Tensor, stream: Stream) -> Tensor:
    """``P`` [B, L]: one at the tower's summary position, else equal shares of the real tokens."""
    size = x.shape[:2]
    if stream.summary is not None:
        return x.new_zeros(size).scatter_(1, stream.summary.unsqueeze(1), 1.0)
    if stream.mask is None:
        return x.new_full(size, 1 / size[1])
    mask = stream.mask.to(x.dtype)
    return mask / mask.sum(1, keepdim=True).clamp_min(1)


def guide_of(adapter: PooledSherlAdapter, last: Tensor) -> Tensor:
    return adapter.guide_reducer(F.relu(last).to(adapter.guide_reducer.weight.dtype))
