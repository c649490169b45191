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

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.sherl import pooled_fused
from vlkit.adapters.sherl.blocks import refine
from vlkit.adapters.sherl.pooled import EPS, PooledSherlAdapter
from vlkit.adapters.sherl.pooled_parts import (
    Backward,
    Layer,
    Part,
    Rows,
    Weights,
    Whole,
    base_weights,
    expand,
    joined,
)
from vlkit.encoders.staged import Stream
from vlkit.number_formats import NumberFormat

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
        fused: use the kernels of :mod:`vlkit.adapters.sherl.pooled_fused` where they can run and whole taps are saved.
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

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> list[Any]:
        """Pool a chunk of samples for :meth:`join`; empties ``reduced``."""
        weights, active = self.weights, self.keep == "active" or (self.keep == "auto" and last.device.type != "cuda")
        if self.fused and not active and pooled_fused.usable(weights, reduced):
            return [pooled_fused.collect(weights, reduced, last, stream.mask, stream.summary, self.tap_dtype)]
        return collect(weights, reduced, Part(last, [], stream.mask, stream.summary), self.tap_dtype, active)

    def join(self, parts: list[list[Any]]) -> Tensor:
        """[B, E] of all chunks together, in the dtype of the parameters."""
        return attach(self.weights, [piece for part in parts for piece in part])


# --- forward ----------------------------------------------------------------------------------------------------------


def collect(weights: Weights, taps: list[Tensor], part: Part, tap_dtype: NumberFormat, active: bool) -> list[Part]:
    """Pool the taps of a chunk and save what backward needs.

    Args:
        weights: weights of the adapter.
        taps: K raw taps [B, L, D_k]; the list is emptied, so that each tap can be freed after use.
        part: the chunk without its layers.
        tap_dtype: number format of the saved values.
        active: save only the values with a gradient.

    Returns:
        One or more parts, in order.
    """
    last, trains = part.last, torch.is_grad_enabled()
    wants_tap_gradient = trains and any(tap.requires_grad for tap in taps)
    if trains and active and len(last) > TOGETHER and not wants_tap_gradient:
        parts = []
        for start in range(0, len(last), TOGETHER):
            at = slice(start, start + TOGETHER)
            few, ends = [tap[at] for tap in taps], None if part.summary is None else part.summary[at]
            seen = None if part.mask is None else part.mask[at]
            parts += collect(weights, few, Part(last[at], [], seen, ends), tap_dtype, active)
        taps.clear()
        return parts
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
    base = base_weights(guide, x.shape[1], part.mask, part.summary)
    mean = torch.bmm(torch.addcmul(scores / total, factor, base).unsqueeze(1), x).squeeze(1)
    layer = Layer(mean, scores, total)
    if weights.base_gate is not None:
        layer.base = torch.bmm(base.unsqueeze(1), x).squeeze(1)
    return layer


def candidates(weights: Weights, parts: list[Part]) -> Tensor:
    """[B, K, H]."""
    found = []
    for i, (reducer, factor) in enumerate(zip(weights.reducers, weights.factors().unbind(), strict=True)):
        share = torch.cat([part.layers[i].attention.sum(1, True) for part in parts]) + factor
        found.append(expand(_means(parts, i), reducer.weight, share * reducer.bias))
    return torch.stack(found, dim=1)


def _means(parts: list[Part], i: int) -> Tensor:
    """``m`` of layer ``i`` over all samples."""
    return joined([part.layers[i].mean for part in parts])


def attach(weights: Weights, parts: list[Any]) -> Tensor:
    """[B, E] in the dtype of the parameters: the refined embeddings of all parts, with their graph.

    Backward can run only once, because it frees the saved tensors of the parts.
    """
    last = joined([part.last for part in parts])
    by_kernels = isinstance(parts[0], pooled_fused.FusedPart)
    taps = [] if by_kernels else [layer.tap for part in parts for layer in part.layers if layer.tap is not None]
    walk = (pooled_fused.ByKernels if by_kernels else ByOperations)(weights, parts, last.detach())
    return _Pooling.apply(walk, last, *weights.parameters(), *taps)


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, walk: Backward, last: Tensor, *tensors: Tensor) -> Tensor:
        ctx.walk, weights = walk, walk.weights
        # Saved only so that autograd detects weights that are modified before backward.
        ctx.save_for_backward(last, *tensors)
        with torch.autocast(last.device.type, enabled=False):
            last = last.to(weights.guide.weight.dtype)
            return refine(weights.aggregator, weights.head, weights.guide_of(last), walk.candidates(), last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.walk is None:
            raise RuntimeError("the lean route frees its saved tensors during backward: backward can run only once")
        last, *_ = ctx.saved_tensors
        walk, ctx.walk = ctx.walk, None
        with torch.autocast(last.device.type, enabled=False):
            walk.run(gradient.to(walk.weights.guide.weight.dtype))
        needed = ctx.needs_input_grad[2:]
        found = [walk.gradients.get(parameter) for parameter in walk.weights.parameters()] + walk.taps
        found = [value if needs else None for value, needs in zip(found, needed, strict=True)]
        return None, walk.last if ctx.needs_input_grad[1] else None, *found


# --- backward ---------------------------------------------------------------------------------------------------------


class ByOperations(Backward):
    """Backward layer by layer; frees each layer after use."""

    def candidates(self) -> Tensor:
        return candidates(self.weights, self.parts)

    def layers(self, guide: Tensor, gradient: Tensor, factors: Tensor, guide_gradient: Tensor) -> Tensor:
        gate, taps = torch.zeros(len(factors), dtype=guide.dtype, device=guide.device), {}
        for i in reversed(range(len(factors))):
            gate[i] = self._layer(i, guide, gradient[:, i], factors[i], guide_gradient, taps)
        self.taps = [taps[key] for key in sorted(taps)]
        return gate

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
        weighted_gradient = expand(query_gradient, reducer.weight, constant.unsqueeze(1) * reducer.bias)
        self.gradients[score.weight] = (weighted_gradient * guide).sum(0, keepdim=True)
        guide_gradient.addcmul_(weighted_gradient, score.weight)
        return gate

    @property
    def _wants_taps(self) -> bool:
        return any(layer is not None and layer.tap is not None for part in self.parts for layer in part.layers)


def _tap_gradient(layer: Any, part: Part, factor: Tensor, through: Tensor, query: Tensor, u: Tensor) -> Tensor:
    """[B, L, D]: gradient through the scores and through the weighted mean with its base token."""
    weights = torch.addcmul(layer.attention, factor, base_weights(u, layer.tap.shape[1], part.mask, part.summary))
    found = through.unsqueeze(2) * query.unsqueeze(1) + weights.unsqueeze(2) * u.unsqueeze(1)
    return (found * (layer.tap > 0)).to(layer.tap.dtype)
