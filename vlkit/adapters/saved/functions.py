"""Operations with an exact forward that keep little for backward (S2A, section 4).

Each function takes ``bits``: None runs the plain operation, bit for bit; 2, 4 or 8 compress what backward needs:

- element-wise ``y = f(x)``: the derivative ``f'(x)``, whose range is small and known, never ``x``;
- softmax: the probabilities under a square root;
- layer norm: the normalised rows; 8 bits if its weight trains;
- a trained linear map, a product of two activations, attention: their operands.

There is no public reference code; which tensor is kept in which form is our concretisation of arXiv 2503.08154.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.lean.recompute import Conditions
from vlkit.adapters.saved.kept import (
    Bits,
    Kept,
    keep,
    keep_between,
    keep_probabilities,
    keep_signs,
    kept_of,
    remember,
    scaled,
)
from vlkit.number_formats import GROUP

Bounds = Literal["group", "fixed"]
EXACT = 8
"""Bits of what enters a gradient directly: operands of products, and normalised rows if the norm's weight trains."""

# --- element-wise functions -------------------------------------------------------------------------------------------


def _gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _tanh_gelu_slope(x: Tensor) -> Tensor:
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(root * (x + cubic * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * cubic * x * x)


def _swish_slope(x: Tensor, beta: float) -> Tensor:
    s = torch.sigmoid(beta * x)
    return s + beta * x * s * (1 - s)


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
    "tanh_gelu": Curve(lambda x: F.gelu(x, approximate="tanh"), _tanh_gelu_slope, -0.12917, 1.12917),
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
        _save(ctx, kept)
        return f.run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (slope,) = _opened(ctx, gradient.dtype)
        return slope * gradient, None, None, None, None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _save(ctx: Any, *kept: Kept) -> None:
    ctx.save_for_backward(*(tensor for one in kept for tensor in one.tensors))
    ctx.openers = [(one.open, len(one.tensors)) for one in kept]


def _opened(ctx: Any, dtype: torch.dtype) -> list[Tensor]:
    """The tensors behind the arguments of :func:`_save`, in ``dtype``."""
    saved, found = list(ctx.saved_tensors), []
    for open_, count in ctx.openers:
        found.append(open_(*saved[:count]).to(dtype))
        del saved[:count]
    return found


def whole(x: Tensor) -> Kept:
    """A tensor that is kept as it is (a parameter, a row statistic)."""
    return Kept((x,), lambda x: x)


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
        _save(ctx, made[0])
        ctx.dtype = x.dtype
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (p,) = _opened(ctx, gradient.dtype)
        p_gradient = p * gradient
        return p_gradient.sub_(p.mul_(p_gradient.sum(-1, keepdim=True))).to(ctx.dtype), None, None, None


def dropout(x: Tensor, p: float, bits: Bits = None) -> Tensor:
    """Dropout in training mode; backward keeps one bit per value. It draws the same numbers as the plain one."""
    return F.dropout(x, p) if bits is None or p == 0 else _Dropout.apply(x, p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        factors = F.dropout(torch.ones_like(x), p)
        _save(ctx, keep_signs(factors > 0))
        ctx.scale = 0.0 if p == 1 else 1 / (1 - p)
        return x * factors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (kept,) = _opened(ctx, gradient.dtype)
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
        _save(ctx, made[0], whole(scale), *([] if weight is None else [whole(weight)]))
        ctx.center, ctx.dtype = center, x.dtype
        return _norm(x, weight, bias, eps, center)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rows, scale, *weight = _opened(ctx, torch.promote_types(gradient.dtype, torch.float32))
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


# --- products ---------------------------------------------------------------------------------------------------------


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, bits: Bits = None, kept: Kept | None = None
) -> Tensor:
    """``x W^T + b``. A frozen weight saves no input; a trained one keeps it in ``bits``.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out].
        bits: see the module.
        kept: what is already kept of ``x``; default: :func:`vlkit.adapters.saved.kept.kept_of`.
    """
    if bits is None or not weight.requires_grad:
        return F.linear(x, weight, bias)
    kept = kept or kept_of(x, bits)
    if torch.is_autocast_enabled(x.device.type):  # cast here: inside the function the cast would have no gradient
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Linear.apply(x, weight, bias, kept)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept) -> Tensor:
        _save(ctx, kept, whole(weight))
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        x, weight = _opened(ctx, gradient.dtype)
        return (
            gradient @ weight if needs_x else None,
            flat.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
            None,
        )


def product(run: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, bits: Bits = None) -> Tensor:
    """A product of two activations that both need a gradient (matrix or element-wise); keeps both operands.

    They take 8 bits, unless an earlier operation keeps them in fewer (the rows of a softmax). A vector (the factors of
    a layer scale) is kept as it is.
    """
    if bits is None or not (a.requires_grad and b.requires_grad):
        return run(a, b)
    return _Again.apply(run, None, tuple(whole(x) if x.dim() < 2 else kept_of(x, EXACT) for x in (a, b)), a, b)


def attention(q: Tensor, k: Tensor, v: Tensor, bits: Bits = None, **options: Any) -> Tensor:
    """Scaled dot-product attention, [..., N, width]; keeps q, k and v in 8 bits and no probabilities.

    Backward runs the same fused kernel on the reopened tensors, so that not even 4 bits per probability are stored.

    Args:
        q, k, v: see ``torch.nn.functional.scaled_dot_product_attention``.
        bits: see the module.
        options: the other arguments of that function.
    """
    bias = options.get("attn_mask")
    trained_bias = [options.pop("attn_mask")] if bias is not None and bias.requires_grad else []  # T5's positions

    def run(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, *bias, **options)

    inputs = (q, k, v, *trained_bias)
    if bits is None or not any(x.requires_grad for x in inputs):
        return run(*inputs)
    conditions = Conditions(q.device, random=True) if options.get("dropout_p", 0.0) > 0 else None
    kept = (*(keep(x, EXACT) for x in (q, k, v)), *(whole(x) for x in trained_bias))
    return _Again.apply(run, conditions, kept, *inputs)


class _Again(torch.autograd.Function):
    """Runs ``run`` again in backward on the reopened inputs."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], conditions: Conditions | None, kept: tuple[Kept, ...], *inputs: Tensor
    ) -> Tensor:
        output = run(*inputs)
        _save(ctx, *kept)
        ctx.run, ctx.conditions, ctx.dtypes = run, conditions, [x.dtype for x in inputs]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs = [x.detach().requires_grad_() for x in _opened(ctx, gradient.dtype)]
        again = contextlib.nullcontext() if ctx.conditions is None else ctx.conditions.again()
        with torch.enable_grad(), again:
            output = ctx.run(*inputs)
        found = torch.autograd.grad(output, inputs, gradient.to(output.dtype))
        return None, None, None, *(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
