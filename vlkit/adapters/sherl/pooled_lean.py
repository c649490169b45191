"""Memory-efficient SHERL on the pooled embedding: one autograd Function with a hand-written backward.

The guide is the tower's own pooled output, so no layer can be pooled before the tower has run. A chunk of samples
therefore runs through the whole frozen tower first; its raw taps live only until the end of the chunk. Then
:func:`collect` pools them exactly and saves for backward

- for each tap, the values above zero of the tokens with a non-zero weight: the two ReLUs (before the reducer and after
  the score) stop the gradient everywhere else, so nothing is lost;
- for each layer, its weighted mean [B, D], which the gradient of the reducer needs.

:func:`attach` merges the chunks and attaches them to the graph. Its backward recomputes the aggregation, visits the
layers one by one, writes both gradients of a reducer (through the scores and through the mean) into one tensor and
frees each layer after use.

Notation for one layer, B samples with L tokens: ``x = relu(tap)`` [B, L, D], reducer ``W`` [H, D] and ``c`` [H],
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

from vlkit.adapters.sherl import fused
from vlkit.adapters.sherl.blocks import LinearHead, RedundancyAggregator, refine
from vlkit.adapters.sherl.pooled import EPS, PooledSherlAdapter
from vlkit.encoders.staged import Stream
from vlkit.number_formats import NumberFormat, Packed, assumed_rows, has_values

Keep = Literal["auto", "active", "all"]
"""``active``: only values with a gradient; ``all``: whole taps; ``auto``: active on the CPU, all on CUDA, where finding
the active values makes the host wait for the device."""

TOGETHER = 32  # samples whose active rows share one matrix; every product with it covers all of these samples


class LeanPooledSherlAdapter(PooledSherlAdapter):
    """:class:`PooledSherlAdapter` with the same weights and numbers, but fewer saved activations.

    Args:
        arguments: those of :class:`PooledSherlAdapter`.
        tap_dtype: number format of the saved taps. The forward is always exact.
        keep: which values of the taps are saved.
        fused: pool with the kernels of :mod:`vlkit.adapters.sherl.fused` where they can run and whole taps are saved.
    """

    tap_dtype: NumberFormat

    def __init__(
        self,
        *arguments: Any,
        tap_dtype: NumberFormat = "fp32",
        keep: Keep = "auto",
        fused: bool = True,
        **more_arguments: Any,
    ) -> None:
        super().__init__(*arguments, **more_arguments)
        self.tap_dtype, self.keep, self.fused = tap_dtype, keep, fused

    @property
    def weights(self) -> Weights:
        """The weights that the autograd Function uses."""
        return Weights(
            self.guide_reducer, self.reducers, self.token_scores, self.base_gate, self.gate_temperature,
            self.aggregator, self.head,
        )  # fmt: skip

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """The raw tap as [B, L, D]."""
        return tap.hidden.flatten(2).transpose(1, 2) if tap.hidden.dim() == 4 else tap.hidden

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> list[Part]:
        """Pool a chunk of samples for :meth:`join`; empties ``reduced``."""
        active = self.keep == "active" or (self.keep == "auto" and last.device.type != "cuda")
        saving = Saving(self.tap_dtype, active, self.fused and not active)
        return collect(self.weights, reduced, Part(last, [], stream.mask, stream.summary), saving)

    def join(self, parts: list[list[Part]]) -> Tensor:
        """[B, E] of all chunks together, in the dtype of the parameters."""
        return attach(self.weights, [piece for part in parts for piece in part])


class Weights(NamedTuple):
    """The modules and parameters that the Function reads and computes gradients for."""

    guide: nn.Linear
    reducers: Sequence[nn.Linear]
    scores: Sequence[nn.Linear]
    base_gate: Tensor | None
    gate_temperature: float
    aggregator: RedundancyAggregator
    head: LinearHead

    def parameters(self) -> list[Tensor]:
        """All parameters, in a fixed order."""
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


# --- saved tensors ----------------------------------------------------------------------------------------------------


class Saving(NamedTuple):
    """How a layer's tokens are pooled and saved: number format, only values with a gradient, by fused kernels."""

    tap_dtype: NumberFormat
    active: bool
    fused: bool


class Tokens:
    """The tokens of one layer, as saved for backward."""

    def open(self, dtype: torch.dtype) -> None:
        """Unpack ``x``."""
        raise NotImplementedError

    def along(self, u: Tensor) -> Tensor:
        """``x u`` for one vector per sample: [B, D] -> [B, L]."""
        raise NotImplementedError

    def sum(self, weights: Tensor) -> Tensor:
        """``sum_l weights x``: [B, L] -> [B, D]."""
        raise NotImplementedError

    def gradients(self, u: Tensor, t: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Gradients of the scores before their ReLU [B, L] and of the query [B, D], from those of the mean, ``u``
        [B, D], and of the total weight, ``t`` [B]."""
        self.open(u.dtype)
        through, attention = self.along(u) + t.unsqueeze(1), layer.attention  # gradient of the attention
        through = (through - (attention * through).sum(1, keepdim=True)) / layer.total * (layer.scores > 0)
        return through, self.sum(through)


class Rows(Tokens):
    """The tokens of one layer with a non-zero weight, [R, D], from B samples.

    Args:
        x: [B, L, D], after the ReLU.
        scores: [B, L], non-negative.
        tap_dtype: number format of the saved rows.
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

    def along(self, u: Tensor) -> Tensor:  # 0 for tokens without a saved row
        products = (u @ self._x.T).gather(0, self._owner.unsqueeze(0)).squeeze(0)
        return u.new_zeros(self._shape).view(-1).index_copy_(0, self._index, products).view(self._shape)

    def sum(self, weights: Tensor) -> Tensor:
        chosen = weights.reshape(-1).index_select(0, self._index).unsqueeze(0)
        spread = weights.new_zeros(self._shape[0], len(self._index)).scatter_(0, self._owner.unsqueeze(0), chosen)
        return spread @ self._x


class Whole(Tokens):
    """All tokens of one layer, [B, L, D]."""

    def __init__(self, tap: Tensor, tap_dtype: NumberFormat) -> None:
        # Only int8 needs the ReLU before packing; the other formats save the tap without a copy.
        self._tap = Packed(F.relu(tap) if tap_dtype == "int8" else tap, tap_dtype, positive=True)

    def open(self, dtype: torch.dtype) -> None:
        self._x = F.relu(self._tap.open(dtype))

    def along(self, u: Tensor) -> Tensor:
        return torch.bmm(self._x, u.unsqueeze(2)).squeeze(2)

    def sum(self, weights: Tensor) -> Tensor:
        return torch.bmm(weights.unsqueeze(1), self._x).squeeze(1)


class Fused(Whole):
    """:class:`Whole`, read by a kernel as it was saved."""

    def gradients(self, u: Tensor, t: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        return fused.pool_backward(self._tap.stored(), u, t, layer.scores, layer.total)


@dataclass
class Layer:
    """Results of one layer of a chunk: ``m`` [B, D], ``s`` [B, L], ``S`` [B, 1]; for backward also the tokens, the
    base token [B, D] (if it has a learned factor) and the tap (if it requires a gradient)."""

    mean: Tensor
    scores: Tensor
    total: Tensor
    tokens: Tokens | None = None
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


def collect(weights: Weights, taps: list[Tensor], part: Part, saving: Saving) -> list[Part]:
    """Pool the taps of a chunk and save what backward needs.

    Args:
        weights: weights of the adapter.
        taps: K raw taps [B, L, D_k]; the list is emptied, so that each tap can be freed after use.
        part: the chunk without its layers.
        saving: how to save the taps.

    Returns:
        One or more parts, in order.
    """
    last, trains = part.last, torch.is_grad_enabled()
    wants_tap_gradient = trains and any(tap.requires_grad for tap in taps)
    if trains and saving.active and len(last) > TOGETHER and not wants_tap_gradient:
        parts = []
        for start in range(0, len(last), TOGETHER):
            at = slice(start, start + TOGETHER)
            few, ends = [tap[at] for tap in taps], None if part.summary is None else part.summary[at]
            seen = None if part.mask is None else part.mask[at]
            parts += collect(weights, few, Part(last[at], [], seen, ends), saving)
        taps.clear()
        return parts
    dtype = weights.guide.weight.dtype
    bases: dict[int, Tensor] = {}
    with torch.no_grad(), torch.autocast(last.device.type, enabled=False):
        guide = weights.guide_of(last)
        taps.reverse()
        for i, factor in enumerate(weights.factors().unbind()):
            tap = taps.pop()
            length = tap.shape[1]
            if length not in bases:
                bases[length] = _base_weights(guide, length, part)
            by_kernel = saving.fused and dtype == torch.float32 and fused.usable(tap)
            x = tap if by_kernel else F.relu(tap).to(dtype)
            pooled = _pool_fused if by_kernel else _pool
            layer = pooled(weights, i, x, guide, factor, bases[length], part.mask)
            if trains:
                if saving.active:
                    layer.tokens = Rows(x, layer.scores, saving.tap_dtype)
                else:
                    layer.tokens = (Fused if by_kernel else Whole)(tap.detach(), saving.tap_dtype)
                layer.tap = tap if wants_tap_gradient else None
            part.layers.append(layer)
            del tap, x
    return [part]


def _query(weights: Weights, i: int, guide: Tensor) -> tuple[Tensor, Tensor]:
    """``q`` [B, D] and the part of the score that no token changes [B]."""
    weighted = guide * weights.scores[i].weight[0]
    return weighted @ weights.reducers[i].weight, weighted @ weights.reducers[i].bias + weights.scores[i].bias


def _pool(
    weights: Weights, i: int, x: Tensor, guide: Tensor, factor: Tensor, base: Tensor, mask: Tensor | None
) -> Layer:
    query, constant = _query(weights, i, guide)
    scores = torch.baddbmm(constant.view(-1, 1, 1), query.unsqueeze(1), x.transpose(1, 2)).squeeze(1)  # [B, L]
    if mask is not None and x.shape[1] == mask.shape[1]:
        scores = scores * mask
    scores = F.relu(scores)
    total = scores.sum(1, keepdim=True) + EPS
    mean = torch.bmm(torch.addcmul(scores / total, factor, base).unsqueeze(1), x).squeeze(1)
    layer = Layer(mean, scores, total)
    if weights.base_gate is not None:
        layer.base = torch.bmm(base.unsqueeze(1), x).squeeze(1)
    return layer


def _pool_fused(
    weights: Weights, i: int, tap: Tensor, guide: Tensor, factor: Tensor, base: Tensor, mask: Tensor | None
) -> Layer:
    """:func:`_pool` of the raw tap, by one kernel."""
    mask = None if mask is None or tap.shape[1] != mask.shape[1] else mask
    scores, scored, anchor = fused.pool(tap, *_query(weights, i, guide), base, mask)
    total = scores.sum(1, keepdim=True) + EPS
    mean = torch.addcmul(scored / total, factor, anchor)
    return Layer(mean, scores, total, base=None if weights.base_gate is None else anchor)


def _base_weights(like: Tensor, length: int, part: Part) -> Tensor:
    """``P`` [B, L] in the dtype of ``like``: 1 at the tower's summary position, or equal weights over the real
    tokens."""
    size = len(part.last), length
    if part.summary is not None:
        return like.new_zeros(size).scatter_(1, part.summary.unsqueeze(1), 1.0)
    if part.mask is None:
        return like.new_full(size, 1 / length)
    mask = part.mask.to(like.dtype)
    return mask / mask.sum(1, keepdim=True).clamp_min(1)


def _means(parts: list[Part], i: int) -> Tensor:
    """``m`` of layer ``i`` over all samples."""
    return parts[0].layers[i].mean if len(parts) == 1 else torch.cat([part.layers[i].mean for part in parts])


def _expand(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """``offset + x weight^T`` with the large factor first, which is twice as fast when ``x`` has few rows."""
    return torch.addmm(offset.T, weight, x.T).T


def attach(weights: Weights, parts: list[Part]) -> Tensor:
    """[B, E] in the dtype of the parameters: the refined embeddings of all parts, with their graph.

    Backward can run only once, because it frees the saved tensors of the parts.
    """
    last = torch.cat([part.last for part in parts]) if len(parts) > 1 else parts[0].last
    taps = [layer.tap for part in parts for layer in part.layers if layer.tap is not None]
    return _Pooling.apply(weights, parts, last, *weights.parameters(), *taps)


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Weights, parts: list[Part], last: Tensor, *tensors: Tensor) -> Tensor:
        ctx.weights, ctx.parts = weights, parts
        # Saved only so that autograd detects weights that are modified before backward.
        ctx.save_for_backward(last, *tensors)
        with torch.autocast(last.device.type, enabled=False):
            last = last.to(weights.guide.weight.dtype)
            candidates = weights.candidates(parts)
            return refine(weights.aggregator, weights.head, weights.guide_of(last), candidates, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.parts is None:
            raise RuntimeError("the lean route frees its saved tensors during backward: backward can run only once")
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
    """Backward pass: from the gradient of the output to the gradients of weights, guide and taps."""

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
        """Recompute aggregation and head with autograd: gradients of the guide [B, H] and candidates [B, K, H]."""
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
        """Gradients of layer ``i``'s weights; adds to the guide's gradient and returns that of the base token's
        factor."""
        reducer, score = self.weights.reducers[i], self.weights.scores[i]
        u, t = gradient @ reducer.weight, gradient @ reducer.bias  # gradients of mean and total weight
        weighted = guide * score.weight[0]
        query = weighted @ reducer.weight if self._wants_taps else None
        mean, share = _means(self.parts, i), []
        query_gradients, constants, start, gate = [], [], 0, u.new_zeros(())
        for number, part in enumerate(self.parts):
            layer, at = part.layers[i], slice(start, start + len(part.last))
            through, query_gradient = layer.tokens.gradients(u[at], t[at], layer)
            query_gradients.append(query_gradient)
            constants.append(through.sum(1))
            share.append(layer.attention.sum(1) + factor)
            if layer.base is not None:
                gate = gate + (u[at] * layer.base).sum() + t[at].sum()
            if query is not None and layer.tap is not None:
                taps[number, i] = _tap_gradient(layer, part, factor, through, query[at], u[at])
            part.layers[i], start = None, at.stop  # frees the tokens
        query_gradient, constant, share = torch.cat(query_gradients), torch.cat(constants), torch.cat(share)
        # Gradients through the mean and through the query in one product, so the large result is written once.
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
    """[B, L, D]: gradient through the scores and through the weighted mean with its base token."""
    weights = torch.addcmul(layer.attention, factor, _base_weights(u, layer.tap.shape[1], part))
    found = through.unsqueeze(2) * query.unsqueeze(1) + weights.unsqueeze(2) * u.unsqueeze(1)
    return (found * (layer.tap > 0)).to(layer.tap.dtype)
