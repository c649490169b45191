"""What SHERL on the pooled embedding saves for backward, and the part of backward that all of its forms share.

The notation is that of :mod:`vlkit.adapters.sherl.pooled_lean`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.sherl.blocks import LinearHead, RedundancyAggregator, refine
from vlkit.number_formats import NumberFormat, Packed, assumed_rows, has_values


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


class Tokens(ABC):
    """The tokens of one layer, as saved for backward."""

    @abstractmethod
    def open(self, dtype: torch.dtype) -> None:
        """Unpack ``x``."""

    @abstractmethod
    def along(self, u: Tensor) -> Tensor:
        """``x u`` for one vector per sample: [B, D] -> [B, L]."""

    @abstractmethod
    def sum(self, weights: Tensor) -> Tensor:
        """``sum_l weights x``: [B, L] -> [B, D]."""

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
        self._tap = packed(tap, tap_dtype)

    def open(self, dtype: torch.dtype) -> None:
        self._x = F.relu(self._tap.open(dtype))

    def along(self, u: Tensor) -> Tensor:
        return torch.bmm(self._x, u.unsqueeze(2)).squeeze(2)

    def sum(self, weights: Tensor) -> Tensor:
        return torch.bmm(weights.unsqueeze(1), self._x).squeeze(1)


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


def base_weights(like: Tensor, length: int, mask: Tensor | None, summary: Tensor | None) -> Tensor:
    """``P`` [B, L] in the dtype of ``like`` [B, ...]: 1 at the tower's summary position, or equal weights over the real
    tokens."""
    size = len(like), length
    if summary is not None:
        return like.new_zeros(size).scatter_(1, summary.unsqueeze(1), 1.0)
    if mask is None:
        return like.new_full(size, 1 / length)
    mask = mask.to(like.dtype)
    return mask / mask.sum(1, keepdim=True).clamp_min(1)


def packed(tap: Tensor, tap_dtype: NumberFormat) -> Packed:
    """All tokens of a tap, to be read through a ReLU."""
    # Only int8 needs the ReLU before packing; the other formats save the tap without a copy.
    return Packed(F.relu(tap) if tap_dtype == "int8" else tap, tap_dtype, positive=True)


def joined(tensors: list[Tensor]) -> Tensor:
    """The tensors of all parts as one; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def expand(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """``offset + x weight^T`` with the large factor first, which is twice as fast when ``x`` has few rows."""
    return torch.addmm(offset.T, weight, x.T).T


class Backward(ABC):
    """Backward pass: from the gradient of the output to the gradients of weights, guide and taps.

    Args:
        weights: of the adapter.
        parts: what was saved.
        last: [B, E], the tower's own embedding.

    Attributes:
        gradients: parameter -> gradient.
        last: gradient of the embedding, [B, E].
        taps: gradients of the taps that want one, in the order of the parts and layers.
    """

    def __init__(self, weights: Weights, parts: list[Any], last: Tensor) -> None:
        self.weights, self.parts, self._raw_last = weights, parts, last
        self.last = last
        self.gradients: dict[Tensor, Tensor] = {}
        self.taps: list[Tensor] = []

    def run(self, gradient: Tensor) -> None:
        weights, last = self.weights, self._raw_last
        guide = weights.guide_of(last)
        guide_gradient, candidates = self._refine(guide, gradient)
        factors = weights.factors()
        gate = self.layers(guide, candidates, factors, guide_gradient)
        if weights.base_gate is not None:
            self.gradients[weights.base_gate] = gate * factors * (1 - factors) / weights.gate_temperature
        self.gradients[weights.guide.weight] = guide_gradient.T @ F.relu(last).to(guide.dtype)
        self.gradients[weights.guide.bias] = guide_gradient.sum(0)
        through_guide = (guide_gradient @ weights.guide.weight) * (last > 0)
        self.last = (gradient + through_guide).to(last.dtype)

    @abstractmethod
    def candidates(self) -> Tensor:
        """[B, K, H], from what was saved."""

    @abstractmethod
    def layers(self, guide: Tensor, gradient: Tensor, factors: Tensor, guide_gradient: Tensor) -> Tensor:
        """Gradients of the weights of all layers, and of the taps; adds to the guide's.

        Args:
            guide: [B, H].
            gradient: of the candidates, [B, K, H].
            factors: of the base tokens, [K].
            guide_gradient: [B, H], changed in place.

        Returns:
            Gradient of the factors, [K].
        """

    def _refine(self, guide: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Recompute aggregation and head with autograd: gradients of the guide [B, H] and candidates [B, K, H]."""
        aggregator, head = self.weights.aggregator, self.weights.head
        leaves = guide.detach().requires_grad_(), self.candidates().requires_grad_()
        owned = [p for module in (aggregator, head) for p in module.parameters() if p.requires_grad]
        with torch.enable_grad():
            out = refine(aggregator, head, *leaves, self._raw_last.detach().to(guide.dtype))
        found = torch.autograd.grad(out, [*leaves, *owned], gradient, allow_unused=True)
        self.gradients.update((p, value) for p, value in zip(owned, found[2:], strict=True) if value is not None)
        first, second = (
            torch.zeros_like(leaf) if value is None else value for leaf, value in zip(leaves, found[:2], strict=True)
        )
        return first, second
