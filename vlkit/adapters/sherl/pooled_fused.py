"""SHERL on the pooled embedding by kernels (:mod:`vlkit.adapters.sherl.pooled_kernels`), with few launches.

A GPU waits for the host if every layer is fifty small operations, in forward and backward. Here a layer is a product
with its reducer and two kernels forward, three products and two kernels backward; all else is done for the K layers at
once, as [K, B, ...].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkit.adapters.sherl import pooled_kernels
from vlkit.adapters.sherl.pooled import EPS
from vlkit.adapters.sherl.pooled_parts import Backward, Weights, base_weights, joined, packed
from vlkit.number_formats import NumberFormat


class FusedPart(NamedTuple):
    """A chunk of B samples: the tower's own embedding [B, E]; for each layer the tap, ``s`` [B, L], ``S`` [B], ``m``
    [B, D] and, if it has a learned factor, the base token [B, D]."""

    last: Tensor
    taps: list[Any]  # of Packed; backward puts None in the place of what it is done with
    scores: list[Tensor]
    totals: list[Tensor]
    means: list[Tensor]
    bases: list[Any]  # of Tensor or None


def usable(weights: Weights, taps: list[Tensor]) -> bool:
    """Whether the kernels can run: no tap wants a gradient, and all are in reach of the kernels."""
    wanted = torch.is_grad_enabled() and any(tap.requires_grad for tap in taps)
    single = weights.guide.weight.dtype == torch.float32
    return single and not wanted and all(pooled_kernels.usable(tap) for tap in taps)


def collect(
    weights: Weights,
    taps: list[Tensor],
    last: Tensor,
    mask: Tensor | None,
    summary: Tensor | None,
    tap_dtype: NumberFormat,
) -> FusedPart:
    """Pool the taps of a chunk and save what backward needs.

    Args:
        weights: weights of the adapter.
        taps: K raw taps [B, L, D_k]; the list is emptied, so that each tap can be freed after use.
        last: [B, E], the tower's pooled embedding.
        mask, summary: of the stream, [B, L] bool and [B] int64.
        tap_dtype: number format of the saved taps.
    """
    part, trains, bases = FusedPart(last, [], [], [], [], []), torch.is_grad_enabled(), {}
    with torch.no_grad(), torch.autocast(last.device.type, enabled=False):
        guide = weights.guide_of(last)
        weighted, biases = guide * _score_weights(weights).unsqueeze(1), _biases(weights)
        offsets = torch.stack([score.bias for score in weights.scores]).unsqueeze(1)
        constants = torch.baddbmm(offsets, weighted, biases.unsqueeze(2)).squeeze(2)  # [K, B]
        factors = weights.factors()
        taps.reverse()
        for i, reducer in enumerate(weights.reducers):
            tap = taps.pop()
            length = tap.shape[1]
            if length not in bases:
                bases[length] = base_weights(guide, length, mask, summary)
            seen = None if mask is None or mask.shape[1] != length else mask.contiguous()
            query, gated = weighted[i] @ reducer.weight, weights.base_gate is not None
            scores, total, mean, base = pooled_kernels.pool(
                tap, query, constants[i], bases[length], seen, factors[i], EPS, gated
            )
            part.scores.append(scores)
            part.totals.append(total)
            part.means.append(mean)
            part.bases.append(base)
            if trains:
                part.taps.append(packed(tap.detach(), tap_dtype))
            del tap
    return part


def _score_weights(weights: Weights) -> Tensor:
    """``w`` of each layer, [K, H]."""
    return torch.cat([score.weight for score in weights.scores])


def _biases(weights: Weights) -> Tensor:
    """``c`` of each layer, [K, H]."""
    return torch.stack([reducer.bias for reducer in weights.reducers])


class ByKernels(Backward):
    """Backward of :func:`collect`."""

    parts: list[FusedPart]
    _candidates: Tensor | None = None

    def candidates(self) -> Tensor:
        if self._candidates is None:  # kept: K vectors per sample are little beside K taps
            weights = self.weights
            means = [joined([part.means[i] for part in self.parts]) for i in range(len(weights.reducers))]
            found = torch.stack(
                [mean @ reducer.weight.T for mean, reducer in zip(means, weights.reducers, strict=True)]
            )
            found.addcmul_(self._shares().unsqueeze(2), _biases(weights).unsqueeze(1))
            self._candidates = found.transpose(0, 1)
        return self._candidates.detach()

    def _shares(self) -> Tensor:
        """``sum a + f``, [K, B]."""
        totals = torch.stack(
            [joined([part.totals[i] for part in self.parts]) for i in range(len(self.parts[0].totals))]
        )
        return 1 - EPS / totals + self.weights.factors().unsqueeze(1)

    def layers(self, guide: Tensor, gradient: Tensor, factors: Tensor, guide_gradient: Tensor) -> Tensor:
        weights, gradient = self.weights, gradient.transpose(0, 1).contiguous()  # [K, B, H]
        scores, biases = _score_weights(weights), _biases(weights)
        weighted = guide * scores.unsqueeze(1)
        t = (gradient * biases.unsqueeze(1)).sum(2)
        constants, through = torch.empty_like(t), torch.empty_like(weighted)
        gates: list[Tensor] = []
        for i in reversed(range(len(factors))):
            matrix = weights.reducers[i].weight
            u = gradient[i] @ matrix
            query, start = torch.empty_like(u), 0
            for part in self.parts:
                at = slice(start, start + len(part.last))
                saved = part.taps[i].stored(), u[at], t[i, at], part.scores[i], part.totals[i]
                pooled_kernels.pool_backward(*saved, query[at], constants[i, at])
                part.taps[i], start = None, at.stop
            # Gradients through the mean and through the query.
            mean = joined([part.means[i] for part in self.parts])
            self.gradients[matrix] = (gradient[i].T @ mean).addmm_(weighted[i].T, query)
            torch.mm(query, matrix.T, out=through[i])
            if weights.base_gate is not None:
                gates.append((u * joined([part.bases[i] for part in self.parts])).sum())
        through.addcmul_(constants.unsqueeze(2), biases.unsqueeze(1))
        bias = torch.bmm(self._shares().unsqueeze(1), gradient).baddbmm_(constants.unsqueeze(1), weighted).squeeze(1)
        own = (through * guide).sum(1).unsqueeze(1), constants.sum(1).unsqueeze(1)
        for i, (reducer, score) in enumerate(zip(weights.reducers, weights.scores, strict=True)):
            self.gradients[reducer.bias], self.gradients[score.weight] = bias[i], own[0][i]
            self.gradients[score.bias] = own[1][i]
        guide_gradient.add_((through * scores.unsqueeze(1)).sum(0))
        return torch.stack(gates[::-1]) + t.sum(1) if gates else torch.zeros_like(factors)
