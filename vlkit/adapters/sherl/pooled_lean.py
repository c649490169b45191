"""SHERL in the joint space in little memory: one autograd Function with a backward written by hand.

The guide is the tower's own pooled output, so no layer can be pooled before the tower is done. A chunk of samples
therefore runs through the whole frozen tower first, and its raw taps wait for the end of the chunk alone. Then
:func:`vlkit.adapters.sherl.pooled_collect.collect` pools them, exactly, and keeps for backward

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

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.sherl.pooled_collect import Layer, Part, base_weights, guide_of

if TYPE_CHECKING:
    from vlkit.adapters.sherl.pooled import PooledSherlAdapter


def _candidates(adapter: PooledSherlAdapter, parts: list[Part]) -> Tensor:
    """[B, K, H]."""
    found = []
    for i, (reducer, factor) in enumerate(zip(adapter.reducers, adapter.base_factors().unbind(), strict=True)):
        mean, share = _column(parts, i, "mean"), torch.cat([part.layers[i].attention.sum(1, True) for part in parts])
        found.append(_expand(mean, reducer.weight, (share + factor) * reducer.bias))
    return torch.stack(found, dim=1)


def _expand(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """``offset + x weight^T``, the large factor first: twice as fast for the few rows of ``x``."""
    return torch.addmm(offset.T, weight, x.T).T


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
            return adapter.refine(guide_of(adapter, last), _candidates(adapter, parts), last)

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
        guide = guide_of(adapter, last)
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


def _tap_gradient(layer: Layer, part: Part, factor: Tensor, through: Tensor, query: Tensor, u: Tensor) -> Tensor:
    """[B, L, D]: through the scores, and through the weighted mean with its base token."""
    weights = torch.addcmul(layer.attention, factor, base_weights(layer.tap.to(u.dtype), part.stream))
    found = through.unsqueeze(2) * query.unsqueeze(1) + weights.unsqueeze(2) * u.unsqueeze(1)
    return (found * (layer.tap > 0)).to(layer.tap.dtype)
