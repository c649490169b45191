"""SHERL in the joint space in little memory: one autograd Function with a backward written by hand.

The guide is the tower's own pooled output, so no layer can be pooled before the tower is done. A chunk of samples
therefore runs through the whole frozen tower first, and its raw taps wait for the end of the chunk alone. Then
:func:`collect` pools them, exactly, and keeps for backward

- of each tap the tokens that have a weight, and of those the values above zero: the two ReLUs (in front of the
  reducer and behind the score) stop the gradient everywhere else. Nothing is lost;
- of each layer its weighted mean [B, D], which the gradient of the reducer needs.

:func:`attach` merges the chunks and hangs them into the graph. Its backward recomputes the aggregation, goes through
the layers one by one, writes both gradients of a reducer (through the scores and through the mean) into one tensor and
lets go of each layer when it is done with it.

Notation of one layer, of B samples with L tokens: ``x = relu(tap)`` [B, L, D], reducer ``W`` [H, D] and ``c`` [H],
score ``w`` [H] and ``b``, guide ``g`` [B, H], ``q = (g * w) W``, ``s = relu(mask * (x q + (g * w) c + b))``,
``S = sum s + eps``, ``a = s / S``, base weights ``P`` [B, L] with their factor ``f``, mean ``m = (a + f P) x``,
candidate ``m W^T + (sum a + f) c`` [B, H].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.chunks import samples_of
from vlkit.adapters.kept import Kept, TapDtype, has_values
from vlkit.encoders.staged import Stream

if TYPE_CHECKING:
    from vlkit.adapters.pooled import PooledSherlAdapter

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
        # Of tensors without values the upper bound is kept: every row, every value.
        flat = scores.reshape(-1)
        self._index = flat.nonzero().squeeze(1) if has_values(flat) else torch.arange(len(flat), device=flat.device)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, self._index)
        self._rows, self._shape = Kept(rows, tap_dtype, positive=True, sparse=True), scores.shape

    def open(self, dtype: torch.dtype) -> None:
        self._x = self._rows.open(dtype)
        self._owner = torch.div(self._index, self._shape[1], rounding_mode="floor").unsqueeze(1)  # [R, 1]

    def along(self, u: Tensor) -> Tensor:
        """``x u`` for one vector a sample: [B, D] -> [B, L]; 0 where no row is kept."""
        products = (self._x @ u.T).gather(1, self._owner).squeeze(1)
        return u.new_zeros(self._shape).view(-1).index_copy_(0, self._index, products).view(self._shape)

    def sum(self, weights: Tensor) -> Tensor:
        """``sum_l weights x`` over the kept rows: [B, L] -> [B, D]."""
        chosen = weights.reshape(-1).index_select(0, self._index).unsqueeze(1)
        spread = weights.new_zeros(len(self._index), self._shape[0]).scatter_(1, self._owner, chosen)
        return spread.T @ self._x


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
        guide = _guide(adapter, last)
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
    for rows in torch.arange(len(last)).split(TOGETHER):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        parts += collect(adapter, [tap[at] for tap in taps], last[at], samples_of(stream, at))
    taps.clear()
    return parts


def _pool(
    adapter: PooledSherlAdapter, i: int, x: Tensor, guide: Tensor, factor: Tensor, stream: Stream
) -> tuple[Layer, Tensor]:
    reducer, score = adapter.reducers[i], adapter.token_scores[i]
    weighted = guide * score.weight[0]
    query, constant = weighted @ reducer.weight, weighted @ reducer.bias + score.bias
    scores = torch.baddbmm(constant.view(-1, 1, 1), x, query.unsqueeze(2)).squeeze(2)  # [B, L]
    if stream.mask is not None and x.shape[1] == stream.mask.shape[1]:
        scores = scores * stream.mask
    scores = F.relu(scores)
    total = scores.sum(1, keepdim=True) + adapter.eps
    base = _base_weights(x, stream)
    mean = torch.bmm(torch.addcmul(scores / total, factor, base).unsqueeze(1), x).squeeze(1)
    layer = Layer(mean, scores, total)
    if adapter.base_gate is not None:
        layer.base = torch.bmm(base.unsqueeze(1), x).squeeze(1)
    return layer, x


def _base_weights(x: Tensor, stream: Stream) -> Tensor:
    """``P`` [B, L]: one at the tower's summary position, else equal shares of the real tokens."""
    size = x.shape[:2]
    if stream.summary is not None:
        return x.new_zeros(size).scatter_(1, stream.summary.unsqueeze(1), 1.0)
    if stream.mask is None:
        return x.new_full(size, 1 / size[1])
    mask = stream.mask.to(x.dtype)
    return mask / mask.sum(1, keepdim=True).clamp_min(1)


def _guide(adapter: PooledSherlAdapter, last: Tensor) -> Tensor:
    return adapter.guide_reducer(F.relu(last).to(adapter.guide_reducer.weight.dtype))


def _candidates(adapter: PooledSherlAdapter, parts: list[Part]) -> Tensor:
    """[B, K, H]."""
    found = []
    for i, (reducer, factor) in enumerate(zip(adapter.reducers, adapter.base_factors().unbind(), strict=True)):
        mean, share = _column(parts, i, "mean"), torch.cat([part.layers[i].attention.sum(1, True) for part in parts])
        found.append(torch.addmm((share + factor) * reducer.bias, mean, reducer.weight.T))
    return torch.stack(found, dim=1)


def _column(parts: list[Part], i: int, name: str) -> Tensor:
    """One field of layer ``i`` over all samples."""
    columns = [getattr(part.layers[i], name) for part in parts]
    return columns[0] if len(columns) == 1 else torch.cat(columns)


def attach(adapter: PooledSherlAdapter, parts: list[Part]) -> Tensor:
    """[B, E] in the parameters' number format: the refined embeddings of all parts, with their graph.

    The graph can be gone through once: backward frees what the parts hold.
    """
    last = torch.cat([part.last for part in parts]) if len(parts) > 1 else parts[0].last
    taps = [layer.tap for part in parts for layer in part.layers if layer.tap is not None]
    return _Pooling.apply(adapter, parts, last, *adapter.parameters(), *taps)


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, adapter: PooledSherlAdapter, parts: list[Part], last: Tensor, *tensors: Tensor) -> Tensor:
        ctx.adapter, ctx.parts = adapter, parts
        # Not needed to reach the weights, but to notice when one was changed before backward.
        ctx.save_for_backward(last, *tensors)
        with torch.autocast(last.device.type, enabled=False):
            last = last.to(adapter.guide_reducer.weight.dtype)
            return adapter.refine(_guide(adapter, last), _candidates(adapter, parts), last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.parts is None:
            raise RuntimeError("the lean route frees what it kept as backward goes along: it can be taken only once")
        last, *_ = ctx.saved_tensors
        adapter, parts, ctx.parts = ctx.adapter, ctx.parts, None
        with torch.autocast(last.device.type, enabled=False):
            walk = _Backward(adapter, parts, last)
            walk.run(gradient.to(adapter.guide_reducer.weight.dtype))
        needed = ctx.needs_input_grad[3:]
        found = [walk.gradients.get(parameter) for parameter in adapter.parameters()] + walk.taps
        found = [value if needs else None for value, needs in zip(found, needed, strict=True)]
        return None, None, walk.last if ctx.needs_input_grad[2] else None, *found


class _Backward:
    """One walk from the gradient of the output to those of weights, guide and taps."""

    def __init__(self, adapter: PooledSherlAdapter, parts: list[Part], last: Tensor) -> None:
        self.adapter, self.parts, self._raw_last = adapter, parts, last
        self.gradients: dict[Tensor, Tensor] = {}
        self.taps: list[Tensor] = []

    def run(self, gradient: Tensor) -> None:
        adapter, last = self.adapter, self._raw_last
        guide = _guide(adapter, last)
        guide_gradient, candidates = self._refine(guide, gradient)
        factors = adapter.base_factors().unbind()
        gate, taps = torch.zeros(len(factors), dtype=guide.dtype, device=guide.device), {}
        for i in reversed(range(len(factors))):
            gate[i] = self._layer(i, guide, candidates[:, i], factors[i], guide_gradient, taps)
        if adapter.base_gate is not None:
            factor = adapter.base_factors()
            self.gradients[adapter.base_gate] = gate * factor * (1 - factor) / adapter.gate_temperature
        rectified = F.relu(last).to(guide.dtype)
        self.gradients[adapter.guide_reducer.weight] = guide_gradient.T @ rectified
        self.gradients[adapter.guide_reducer.bias] = guide_gradient.sum(0)
        through_guide = (guide_gradient @ adapter.guide_reducer.weight) * (last > 0)
        self.last = (gradient + through_guide).to(last.dtype)
        self.taps = [taps[key] for key in sorted(taps)]

    def _refine(self, guide: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregation and head again, this time with autograd: gradients of guide [B, H] and candidates [B, K, H]."""
        adapter = self.adapter
        leaves = [guide.detach().requires_grad_(), _candidates(adapter, self.parts).requires_grad_()]
        owned = [p for module in (adapter.aggregator, adapter.head) for p in module.parameters() if p.requires_grad]
        with torch.enable_grad():
            out = adapter.refine(*leaves, self._raw_last.detach().to(guide.dtype))
        found = torch.autograd.grad(out, [*leaves, *owned], gradient, allow_unused=True)
        self.gradients.update((p, value) for p, value in zip(owned, found[2:], strict=True) if value is not None)
        return tuple(
            torch.zeros_like(leaf) if value is None else value for leaf, value in zip(leaves, found[:2], strict=True)
        )

    def _layer(
        self, i: int, guide: Tensor, gradient: Tensor, factor: Tensor, guide_gradient: Tensor, taps: dict
    ) -> Tensor:
        """Gradients of layer ``i``'s weights; adds to the guide's, returns that of the base token's factor."""
        reducer, score = self.adapter.reducers[i], self.adapter.token_scores[i]
        u, t = gradient @ reducer.weight, gradient @ reducer.bias  # [B, D], [B]: of the mean, and of the share
        weighted = guide * score.weight[0]
        query = weighted @ reducer.weight if self._wants_taps else None
        mean, share = _column(self.parts, i, "mean"), []
        query_gradients, constants, start, gate = [], [], 0, u.new_zeros(())
        for number, part in enumerate(self.parts):
            layer, at = part.layers[i], slice(start, start + len(part.last))
            layer.tokens.open(u.dtype)
            attention = layer.attention
            through = layer.tokens.along(u[at]) + t[at].unsqueeze(1)  # of the attention
            through = (through - (attention * through).sum(1, keepdim=True)) / layer.total * (layer.scores > 0)
            query_gradients.append(layer.tokens.sum(through))
            constants.append(through.sum(1))
            share.append(attention.sum(1) + factor)
            if layer.base is not None:
                gate = gate + (u[at] * layer.base).sum() + t[at].sum()
            if layer.tap is not None:
                taps[number, i] = _tap_gradient(layer, part, factor, through, query[at], u[at])
            part.layers[i], start = None, at.stop  # frees the tokens
        query_gradient, constant, share = torch.cat(query_gradients), torch.cat(constants), torch.cat(share)
        weight = gradient.T @ mean
        self.gradients[reducer.weight] = weight.addmm_(weighted.T, query_gradient)
        self.gradients[reducer.bias] = share @ gradient + constant @ weighted
        self.gradients[score.bias] = constant.sum().view_as(score.bias)
        weighted_gradient = torch.addmm(constant.unsqueeze(1) * reducer.bias, query_gradient, reducer.weight.T)
        self.gradients[score.weight] = (weighted_gradient * guide).sum(0, keepdim=True)
        guide_gradient.addcmul_(weighted_gradient, score.weight)
        return gate

    @property
    def _wants_taps(self) -> bool:
        return any(layer is not None and layer.tap is not None for part in self.parts for layer in part.layers)


def _tap_gradient(layer: Layer, part: Part, factor: Tensor, through: Tensor, query: Tensor, u: Tensor) -> Tensor:
    """[B, L, D]: through the scores, and through the weighted mean with its base token."""
    weights = torch.addcmul(layer.attention, factor, _base_weights(layer.tap.to(u.dtype), part.stream))
    found = through.unsqueeze(2) * query.unsqueeze(1) + weights.unsqueeze(2) * u.unsqueeze(1)
    return (found * (layer.tap > 0)).to(layer.tap.dtype)
