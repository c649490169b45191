"""Ridge regression for every penalty from one singular value decomposition, with exact leave-one-out predictions."""

from __future__ import annotations

import torch
from torch import Tensor


class RidgePath:
    """Minimises ``sum_i |W x_i + b - y_i|^2 + penalty |W|^2`` for any penalty; the bias is not penalised.

    Args:
        x: [N, D] float64.
        y: targets, [N, E] float64.

    Attributes:
        eigenvalue: mean eigenvalue of the scatter matrix of ``x``, the natural unit of a penalty.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._y, self._mean_x, self._mean_y = y, x.mean(0), y.mean(0)
        self._u, self._s, self._v = torch.linalg.svd(x - self._mean_x, full_matrices=False)
        self._spread = self._u.T @ (y - self._mean_y)
        self.eigenvalue = max(float(self._s.square().sum()) / x.shape[1], 1e-12)

    def left_out(self, penalty: float, count: int | None = None) -> Tensor:
        """What the solution without row i predicts for row i, for the first ``count`` rows (None = all): [n, E]."""
        u, y = self._u[:count], self._y[:count]
        shrink = self._s.square() / (self._s.square() + penalty)
        fitted = self._mean_y + (u * shrink) @ self._spread
        leverage = 1 / len(self._u) + (u.square() * shrink).sum(1)
        return y - (y - fitted) / (1 - leverage).clamp_min(1e-9).unsqueeze(1)

    def solution(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weight [E, D] and bias [E], float64."""
        weight = ((self._v.T * (self._s / (self._s.square() + penalty))) @ self._spread).T
        return weight, self._mean_y - weight @ self._mean_x
