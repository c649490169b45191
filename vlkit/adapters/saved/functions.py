"""Operations with an exact forward that keep little for backward (S2A, section 4).

Each function takes ``bits``: None runs the plain operation, bit for bit; 2, 4 or 8 compress what backward needs:

- element-wise ``y = f(x)``: the derivative ``f'(x)``, whose range is small and known, never ``x``;
- softmax: the probabilities under a square root;
- layer norm: the normalised rows; 8 bits if its weight trains;
- a trained linear map, a product of two activations, attention: their operands (:mod:`vlkit.adapters.saved.products`).

There is no public reference code; which tensor is kept in which form is our concretisation of arXiv 2503.08154.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.saved.kept import (
    EXACT,
    Bits,
    Kept,
    keep,
    keep_between,
    keep_probabilities,
    keep_signs,
    opened,
    remember,
    save,
    scaled,
    whole,
)
from vlkit.number_formats import GROUP

Bounds = Literal["group", "fixed"]
# --- element-wise functions -------------------------------------------------------------------------------------------


def _gelu_slope(x: Tensor, approximate: str = "none") -> Tensor:
    # torch's own backward on a gradient of ones: one pass instead of six.
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)


def _swish_slope(x: Tensor, beta: float) -> Tensor:
    # The slope of x sigmoid(beta x) is that of SiLU at beta x.
    return torch.ops.aten.silu_backward(torch.ones_like(x), x if beta == 1 else beta * x)


@dataclass(frozen=True)
class Curve:
    """An element-wise function.

    Attributes:
        run: x -> f(x), as the library computes it.
        slope: x -> f'(x).
        low, high: the range of f'.
    """

    run: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    low: float
    high: float


CURVES = {
    "gelu": Curve(F.gelu, _gelu_slope, -0.12890, 1.12890),
    "tanh_gelu": Curve(lambda x: F.gelu(x, approximate="tanh"), lambda x: _gelu_slope(x, "tanh"), -0.12917, 1.12917),
    "silu": Curve(F.silu, lambda x: _swish_slope(x, 1.0), -0.09984, 1.09984),
    "quick_gelu": Curve(lambda x: x * torch.sigmoid(1.702 * x), lambda x: _swish_slope(x, 1.702), -0.09984, 1.09984),
    "relu": Curve(F.relu, lambda x: (x > 0).float(), 0.0, 1.0),
    "tanh": Curve(torch.tanh, lambda x: 1 - torch.tanh(x).square(), 0.0, 1.0),
    "sigmoid": Curve(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), 0.0, 0.25),
}
"""Name -> function; GELU's slope is steepest at x = sqrt 2 and -sqrt 2."""


def curve(
    name: str, x: Tensor, bits: Bits = None, bounds: Bounds = "group", group: int = GROUP, stochastic: bool = False
) -> Tensor:
    """``f(x)`` for a function of :data:`CURVES`; backward multiplies by the kept ``f'(x)``.

    Args:
        name: key of :data:`CURVES`. ReLU needs 1 bit and is exact.
        x: [..., N].
        bits: see the module.
        bounds: ``group``: each group of neighbours stores its bounds (float16), more accurate where the values of a
            layer lie on one side; ``fixed``: levels between the function's own bounds, nothing stored.
        group: values per group.
        stochastic: round at random, without bias.
    """
    if bits is None:
        return CURVES[name].run(x)
    return _Curve.apply(x, CURVES[name], bits, bounds, group, stochastic)


class _Curve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Curve, bits: int, bounds: Bounds, group: int, stochastic: bool) -> Tensor:
        slope = f.slope(_wide(x))
        if f is CURVES["relu"]:
            kept = keep_signs(slope > 0)
        elif bounds == "fixed":
            kept = keep_between(slope, bits, f.low, f.high, stochastic)
        else:
            kept = keep(slope, bits, group, stochastic)
        save(ctx, kept)
        return f.run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (slope,) = opened(ctx, gradient.dtype)
        return slope * gradient, None, None, None, None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# --- softmax, dropout, norms ------------------------------------------------------------------------------------------


def softmax(x: Tensor, bits: Bits = None, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax over the last axis. Its backward ``p (dp - sum dp p)`` uses the reopened rows, which sum to 1.

    A product with values that saves the result shares what the softmax keeps.
    """
    if bits is None:
        return F.softmax(x, -1, dtype=dtype)
    made: list[Kept] = []
    return remember(_Softmax.apply(x, bits, dtype, made), made[0])


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, dtype: torch.dtype | None, made: list[Kept]) -> Tensor:
        p = F.softmax(x, -1, dtype=dtype)
        made.append(keep_probabilities(p, bits))
        save(ctx, made[0])
        ctx.dtype = x.dtype
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (p,) = opened(ctx, gradient.dtype)
        p_gradient = p * gradient
        return p_gradient.sub_(p.mul_(p_gradient.sum(-1, keepdim=True))).to(ctx.dtype), None, None, None


def dropout(x: Tensor, p: float, bits: Bits = None) -> Tensor:
    """Dropout in training mode; backward keeps one bit per value. It draws the same numbers as the plain one."""
    return F.dropout(x, p) if bits is None or p == 0 else _Dropout.apply(x, p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        factors = F.dropout(torch.ones_like(x), p)
        save(ctx, keep_signs(factors > 0))
        ctx.scale = 0.0 if p == 1 else 1 / (1 - p)
        return x * factors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (kept,) = opened(ctx, gradient.dtype)
        return kept.mul_(ctx.scale).mul_(gradient), None


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    bits: Bits = None,
    group: int = GROUP,
    center: bool = True,
) -> Tensor:
    """Layer norm over the last axis ([..., N]), or RMS norm (``center=False``); keeps the normalised rows.

    With 4 bits the gradient of a trained weight would be off by 9 %, so the rows then take 8. A linear map that
    saves the result shares them.
    """
    if bits is None:
        return _norm(x, weight, bias, eps, center)
    trains = weight is not None and weight.requires_grad
    made: list[Kept] = []
    y = _Norm.apply(x, weight, bias, eps, max(bits, EXACT) if trains else bits, group, center, made)
    return remember(y, scaled(made[0], weight, bias))


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool) -> Tensor:
    if center:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    # As transformers computes it.
    rows = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return rows
    return weight * (rows.to(weight.dtype) if weight.dtype in (torch.float16, torch.bfloat16) else rows)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        bits: int,
        group: int,
        center: bool,
        made: list[Kept],
    ) -> Tensor:
        rows = _wide(x)
        if center:
            variance, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
            rows, scale = rows - mean, torch.rsqrt(variance + eps)
        else:
            scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
        made.append(keep(rows * scale, bits, group))
        save(ctx, made[0], whole(scale), *([] if weight is None else [whole(weight)]))
        ctx.center, ctx.dtype = center, x.dtype
        return _norm(x, weight, bias, eps, center)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rows, scale, *weight = opened(ctx, torch.promote_types(gradient.dtype, torch.float32))
        gradient = gradient.to(rows.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        by_column = (-1, gradient.shape[-1])
        weight_gradient = (gradient * rows).reshape(by_column).sum(0) if needs_weight else None
        bias_gradient = gradient.reshape(by_column).sum(0) if needs_bias else None
        if not ctx.needs_input_grad[0]:
            return None, weight_gradient, bias_gradient, None, None, None, None, None
        g = gradient * weight[0] if weight else gradient
        slope = (g * rows).mean(-1, keepdim=True)
        x_gradient = g - rows * slope
        if ctx.center:
            x_gradient -= g.mean(-1, keepdim=True)
        return (x_gradient * scale).to(ctx.dtype), weight_gradient, bias_gradient, None, None, None, None, None
