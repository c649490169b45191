"""SHERL in the joint space in little memory: one autograd Function with a backward written by hand.

The guide is the tower's own pooled output, so no layer can be pooled before the tower is done. A chunk of samples
therefore runs through the whole frozen tower first, and its raw taps wait for the end of the chunk alone. Then
:func:`collect` pools them, exactly, and saves for backward

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.adapters.sherl.blocks import LinearHead, RedundancyAggregator, refine
from vlkit.adapters.sherl.pooled import EPS, PooledSherlAdapter
from vlkit.encoders.staged import Stream
from vlkit.number_formats import NumberFormat, Packed, assumed_rows, has_values

Keep = Literal["auto", "active", "all"]
"""``active``: the values with a gradient; ``all``: whole taps, as they are; ``auto``: active on the CPU, all on CUDA,
where finding the active ones makes the host wait for the device."""

TOGETHER = 32  # samples whose active rows lie in one matrix: products with it do their work for all samples


class LeanPooledSherlAdapter(PooledSherlAdapter):
    """:class:`PooledSherlAdapter` with the same weights and numbers, whose backward needs less.

    Args:
        arguments: those of :class:`PooledSherlAdapter`.
        tap_dtype: number format of what is saved of the taps. The forward is exact with any.
        keep: which values of the taps are saved.
    """

    tap_dtype: NumberFormat

    def __init__(
        self, *arguments: Any, tap_dtype: NumberFormat = "fp32", keep: Keep = "auto", **more_arguments: Any
    ) -> None:
        super().__init__(*arguments, **more_arguments)
        self.tap_dtype, self.keep = tap_dtype, keep

    @property
    def weights(self) -> Weights:
        """What the function computes with."""
        return Weights(
            self.guide_reducer, self.reducers, self.token_scores, self.base_gate, self.gate_temperature,
            self.aggregator, self.head,
        )  # fmt: skip

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """The raw tap as [B, L, D]."""
        return tap.hidden.flatten(2).transpose(1, 2) if tap.hidden.dim() == 4 else tap.hidden

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> list[Part]:
        """What :meth:`join` needs of a chunk of samples; ``reduced`` is emptied on the way."""
        active = self.keep == "active" or (self.keep == "auto" and last.device.type != "cuda")
        return collect(self.weights, reduced, last, stream.mask, stream.summary, self.tap_dtype, active)

    def join(self, parts: list[list[Part]]) -> Tensor:
        """[B, E] of all chunks together, in the parameters' number format."""
        return attach(self.weights, [piece for part in parts for piece in part])


class Weights(NamedTuple):
    """The modules and parameters that the function reads, and gives gradients to."""

    guide: nn.Linear
    reducers: Sequence[nn.Linear]
    scores: Sequence[nn.Linear]
    base_gate: Tensor | None
    gate_temperature: float
    aggregator: RedundancyAggregator
    head: LinearHead

    def parameters(self) -> list[Tensor]:
        """All of them."""
        modules = (self.guide, *self.reducers, *self.scores, self.aggregator, self.head)
        found: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
        return found if self.base_gate is None else [self.base_gate, *found]

    def guide_of(self, last: Tensor) -> Tensor:
        """``g``, [B, H]."""
        return self.guide(F.relu(last).to(self.guide.weight.dtype))

    def factors(self) -> Tensor:
        """``f`` of each layer, [K]."""
        if self.base_gate is None:
            return torch.ones_like(self.aggregator.score.bias).expand(len(self.reducers))
        return torch.sigmoid(self.base_gate / self.gate_temperature)

    def candidates(self, parts: list[Part]) -> Tensor:
        """[B, K, H]."""
        found = []
        for i, (reducer, factor) in enumerate(zip(self.reducers, self.factors().unbind(), strict=True)):
            share = torch.cat([part.layers[i].attention.sum(1, True) for part in parts]) + factor
            found.append(_expand(_means(parts, i), reducer.weight, share * reducer.bias))
        return torch.stack(found, dim=1)


# --- what is saved ----------------------------------------------------------------------------------------------------


class Rows:
    """The tokens of one layer that have a weight, [R, D], of B samples.

    Args:
        x: [B, L, D], behind the ReLU.
        scores: [B, L], at least 0.
        tap_dtype: number format.
    """

    def __init__(self, x: Tensor, scores: Tensor, tap_dtype: NumberFormat) -> None:
        flat = scores.reshape(-1)
        if has_values(flat):
            self._index = flat.nonzero().squeeze(1)
        else:
            self._index = torch.arange(assumed_rows(len(flat)), device=flat.device)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, self._index)
        self._rows, self._shape = Packed(rows, tap_dtype, positive=True, sparse=True), scores.shape

    def open(self, dtype: torch.dtype) -> None:
        self._x = self._rows.open(dtype)
        self._owner = torch.div(self._index, self._shape[1], rounding_mode="floor")  # [R], the sample of each row

    def along(self, u: Tensor) -> Tensor:
        """``x u`` for one vector per sample: [B, D] -> [B, L]; 0 where no row is saved."""
        products = (u @ self._x.T).gather(0, self._owner.unsqueeze(0)).squeeze(0)
        return u.new_zeros(self._shape).view(-1).index_copy_(0, self._index, products).view(self._shape)

    def sum(self, weights: Tensor) -> Tensor:
        """``sum_l weights x`` over the saved rows: [B, L] -> [B, D]."""
        chosen = weights.reshape(-1).index_select(0, self._index).unsqueeze(0)
        spread = weights.new_zeros(self._shape[0], len(self._index)).scatter_(0, self._owner.unsqueeze(0), chosen)
        return spread @ self._x


class Whole:
    """All tokens of one layer, [B, L, D]; same use as :class:`Rows`."""

    def __init__(self, tap: Tensor, tap_dtype: NumberFormat) -> None:
        # What is saved as it is needs no copy behind the ReLU.
        self._tap = Packed(F.relu(tap) if tap_dtype == "int8" else tap, tap_dtype, positive=True)

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


class Part(NamedTuple):
    """A chunk of samples: the tower's own embedding [B, E], the K layers, mask [B, L] and summary positions [B]."""

    last: Tensor
    layers: list[Any]  # of Layer; backward puts None in the place of what it is done with
    mask: Tensor | None
    summary: Tensor | None


# --- forward ----------------------------------------------------------------------------------------------------------


def collect(
    weights: Weights,
    taps: list[Tensor],
    last: Tensor,
    mask: Tensor | None,
    summary: Tensor | None,
    tap_dtype: NumberFormat,
    active: bool,
) -> list[Part]:
    """Pool the taps of a chunk and save what backward needs.

    Args:
        weights: of the adapter.
        taps: K raw taps [B, L, D_k]; the list is emptied, so that each can be freed when it is done.
        last: [B, E], the tower's pooled embedding.
        mask, summary: of the stream, [B, L] bool and [B] int64.
        tap_dtype: number format of what is saved.
        active: save the values with a gradient alone.

    Returns:
        One part or several, in order.
    """
    trains = torch.is_grad_enabled()
    wants_tap_gradient = trains and any(tap.requires_grad for tap in taps)
    if trains and active and len(last) > TOGETHER and not wants_tap_gradient:
        parts = []
        for start in range(0, len(last), TOGETHER):
            at = slice(start, start + TOGETHER)
            few, ends = [tap[at] for tap in taps], None if summary is None else summary[at]
            seen = None if mask is None else mask[at]
            parts += collect(weights, few, last[at], seen, ends, tap_dtype, active)
        taps.clear()
        return parts
    part = Part(last, [], mask, summary)
    dtype = weights.guide.weight.dtype
    with torch.no_grad(), torch.autocast(last.device.type, enabled=False):
        guide = weights.guide_of(last)
        taps.reverse()
        for i, factor in enumerate(weights.factors().unbind()):
            tap = taps.pop()
            x = F.relu(tap).to(dtype)
            layer = _pool(weights, i, x, guide, factor, part)
            if trains:
                layer.tokens = Rows(x, layer.scores, tap_dtype) if active else Whole(tap.detach(), tap_dtype)
                layer.tap = tap if wants_tap_gradient else None
            part.layers.append(layer)
            del tap, x
    return [part]


def _pool(weights: Weights, i: int, x: Tensor, guide: Tensor, factor: Tensor, part: Part) -> Layer:
    reducer, score = weights.reducers[i], weights.scores[i]
    weighted = guide * score.weight[0]
    query, constant = weighted @ reducer.weight, weighted @ reducer.bias + score.bias
    scores = torch.baddbmm(constant.view(-1, 1, 1), query.unsqueeze(1), x.transpose(1, 2)).squeeze(1)  # [B, L]
    if part.mask is not None and x.shape[1] == part.mask.shape[1]:
        scores = scores * part.mask
    scores = F.relu(scores)
    total = scores.sum(1, keepdim=True) + EPS
    base = _base_weights(x, part)
    mean = torch.bmm(torch.addcmul(scores / total, factor, base).unsqueeze(1), x).squeeze(1)
    layer = Layer(mean, scores, total)
    if weights.base_gate is not None:
        layer.base = torch.bmm(base.unsqueeze(1), x).squeeze(1)
    return layer


def _base_weights(x: Tensor, part: Part) -> Tensor:
    """``P`` [B, L]: one at the tower's summary position, else equal shares of the real tokens."""
    size = x.shape[:2]
    if part.summary is not None:
        return x.new_zeros(size).scatter_(1, part.summary.unsqueeze(1), 1.0)
    if part.mask is None:
        return x.new_full(size, 1 / size[1])
    mask = part.mask.to(x.dtype)
    return mask / mask.sum(1, keepdim=True).clamp_min(1)


def _means(parts: list[Part], i: int) -> Tensor:
    """``m`` of layer ``i`` over all samples."""
    return parts[0].layers[i].mean if len(parts) == 1 else torch.cat([part.layers[i].mean for part in parts])


def _expand(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """``offset + x weight^T``, the large factor first: twice as fast for the few rows of ``x``."""
    return torch.addmm(offset.T, weight, x.T).T


def attach(weights: Weights, parts: list[Part]) -> Tensor:
    """[B, E] in the parameters' number format: the refined embeddings of all parts, with their graph.

    The graph can be gone through once: backward frees what the parts hold.
    """
    last = torch.cat([part.last for part in parts]) if len(parts) > 1 else parts[0].last
    taps = [layer.tap for part in parts for layer in part.layers if layer.tap is not None]
    return _Pooling.apply(weights, parts, last, *weights.parameters(), *taps)


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Weights, parts: list[Part], last: Tensor, *tensors: Tensor) -> Tensor:
        ctx.weights, ctx.parts = weights, parts
        # Not needed to reach the weights, but to notice when one was changed before backward.
        ctx.save_for_backward(last, *tensors)
        with torch.autocast(last.device.type, enabled=False):
            last = last.to(weights.guide.weight.dtype)
            candidates = weights.candidates(parts)
            return refine(weights.aggregator, weights.head, weights.guide_of(last), candidates, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.parts is None:
            raise RuntimeError("the lean route frees what it saved as backward goes along: it can be taken only once")
        last, *_ = ctx.saved_tensors
        weights, parts, ctx.parts = ctx.weights, ctx.parts, None
        with torch.autocast(last.device.type, enabled=False):
            walk = _Backward(weights, parts, last)
            walk.run(gradient.to(weights.guide.weight.dtype))
        needed = ctx.needs_input_grad[3:]
        found = [walk.gradients.get(parameter) for parameter in weights.parameters()] + walk.taps
        found = [value if needs else None for value, needs in zip(found, needed, strict=True)]
        return None, None, walk.last if ctx.needs_input_grad[2] else None, *found


# --- backward ---------------------------------------------------------------------------------------------------------


class _Backward:
    """One walk from the gradient of the output to those of weights, guide and taps."""

    def __init__(self, weights: Weights, parts: list[Part], last: Tensor) -> None:
        self.weights, self.parts, self._raw_last = weights, parts, last
        self.gradients: dict[Tensor, Tensor] = {}
        self.taps: list[Tensor] = []

    def run(self, gradient: Tensor) -> None:
        weights, last = self.weights, self._raw_last
        guide = weights.guide_of(last)
        guide_gradient, candidates = self._refine(guide, gradient)
        factors = weights.factors()
        gate, taps = torch.zeros(len(factors), dtype=guide.dtype, device=guide.device), {}
        for i in reversed(range(len(factors))):
            gate[i] = self._layer(i, guide, candidates[:, i], factors[i], guide_gradient, taps)
        if weights.base_gate is not None:
            self.gradients[weights.base_gate] = gate * factors * (1 - factors) / weights.gate_temperature
        self.gradients[weights.guide.weight] = guide_gradient.T @ F.relu(last).to(guide.dtype)
        self.gradients[weights.guide.bias] = guide_gradient.sum(0)
        through_guide = (guide_gradient @ weights.guide.weight) * (last > 0)
        self.last = (gradient + through_guide).to(last.dtype)
        self.taps = [taps[key] for key in sorted(taps)]

    def _refine(self, guide: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregation and head again, this time with autograd: gradients of guide [B, H] and candidates [B, K, H]."""
        aggregator, head = self.weights.aggregator, self.weights.head
        leaves = guide.detach().requires_grad_(), self.weights.candidates(self.parts).requires_grad_()
        owned = [p for module in (aggregator, head) for p in module.parameters() if p.requires_grad]
        with torch.enable_grad():
            out = refine(aggregator, head, *leaves, self._raw_last.detach().to(guide.dtype))
        found = torch.autograd.grad(out, [*leaves, *owned], gradient, allow_unused=True)
        self.gradients.update((p, value) for p, value in zip(owned, found[2:], strict=True) if value is not None)
        first, second = (
            torch.zeros_like(leaf) if value is None else value for leaf, value in zip(leaves, found[:2], strict=True)
        )
        return first, second

    def _layer(
        self, i: int, guide: Tensor, gradient: Tensor, factor: Tensor, guide_gradient: Tensor, taps: dict
    ) -> Tensor:
        """Gradients of layer ``i``'s weights; adds to the guide's, returns that of the base token's factor."""
        reducer, score = self.weights.reducers[i], self.weights.scores[i]
        u, t = gradient @ reducer.weight, gradient @ reducer.bias  # [B, D], [B]: of the mean, and of the share
        weighted = guide * score.weight[0]
        query = weighted @ reducer.weight if self._wants_taps else None
        mean, share = _means(self.parts, i), []
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
            if query is not None and layer.tap is not None:
                taps[number, i] = _tap_gradient(layer, part, factor, through, query[at], u[at])
            part.layers[i], start = None, at.stop  # frees the tokens
        query_gradient, constant, share = torch.cat(query_gradients), torch.cat(constants), torch.cat(share)
        # Through the mean and through the query: one product over both, which writes its large result once.
        self.gradients[reducer.weight] = torch.cat([gradient, weighted]).T @ torch.cat([mean, query_gradient])
        self.gradients[reducer.bias] = share @ gradient + constant @ weighted
        self.gradients[score.bias] = constant.sum().view_as(score.bias)
        weighted_gradient = _expand(query_gradient, reducer.weight, constant.unsqueeze(1) * reducer.bias)
        self.gradients[score.weight] = (weighted_gradient * guide).sum(0, keepdim=True)
        guide_gradient.addcmul_(weighted_gradient, score.weight)
        return gate

    @property
    def _wants_taps(self) -> bool:
        return any(layer is not None and layer.tap is not None for part in self.parts for layer in part.layers)


def _tap_gradient(layer: Any, part: Part, factor: Tensor, through: Tensor, query: Tensor, u: Tensor) -> Tensor:
    """[B, L, D]: through the scores, and through the weighted mean with its base token."""
    weights = torch.addcmul(layer.attention, factor, _base_weights(layer.tap.to(u.dtype), part))
    found = through.unsqueeze(2) * query.unsqueeze(1) + weights.unsqueeze(2) * u.unsqueeze(1)
    return (found * (layer.tap > 0)).to(layer.tap.dtype)
