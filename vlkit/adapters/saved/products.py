"""Products with an exact forward that keep their operands in few bits: linear maps, matrix products, attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.lean.pieces import Conditions
from vlkit.adapters.saved.kept import EXACT, Bits, Kept, keep, kept_of, opened, save, whole


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
        save(ctx, kept, whole(weight))
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        x, weight = opened(ctx, gradient.dtype)
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
        if bias:
            return F.scaled_dot_product_attention(q, k, v, bias[0], **options)
        return F.scaled_dot_product_attention(q, k, v, **options)

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
        save(ctx, *kept)
        ctx.run, ctx.conditions, ctx.dtypes = run, conditions, [x.dtype for x in inputs]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs = [x.detach().requires_grad_() for x in opened(ctx, gradient.dtype)]
        again = contextlib.nullcontext() if ctx.conditions is None else ctx.conditions.again()
        with torch.enable_grad(), again:
            output = ctx.run(*inputs)
        found = torch.autograd.grad(output, inputs, gradient.to(output.dtype))
        return None, None, None, *(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
