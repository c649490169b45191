"""Convolutions and batch norm with an exact forward that keep little for backward; grids [B, C, H, W]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.adapters.saved.kept import EXACT, Bits, Kept, kept_grid, opened, save, whole


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bits: Bits = None,
) -> Tensor:
    """``torch.nn.functional.conv2d``. A frozen kernel saves no input; a trained one keeps it in ``bits``."""
    if bits is None or not (weight.requires_grad and x.requires_grad):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    kept = kept_grid(x, bits)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Conv.apply(x, weight, bias, (stride, padding, dilation, groups), kept)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...], kept: Kept) -> Tensor:
        save(ctx, kept, whole(weight))
        ctx.how, ctx.bias = how, None if bias is None else list(bias.shape)
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, weight = opened(ctx, gradient.dtype)
        stride, padding, dilation, groups = ctx.how
        found = torch.ops.aten.convolution_backward(
            *(gradient, x, weight, ctx.bias, stride, padding, dilation),
            *(False, [0, 0], groups, list(ctx.needs_input_grad[:3])),
        )
        return *found, None, None


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    bits: Bits = None,
) -> Tensor:
    """Batch norm with fixed statistics. Its input is kept (in 8 bits) only if its weight trains."""
    if bits is None:
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
    kept = [kept_grid(x, EXACT)] if weight is not None and weight.requires_grad else []
    return _BatchNorm.apply(x, mean, variance, weight, bias, eps, kept)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        kept: list[Kept],
    ) -> Tensor:
        scale = torch.rsqrt(variance + eps)
        save(ctx, whole(scale), whole(mean), whole(torch.ones_like(scale) if weight is None else weight), *kept)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        scale, mean, weight, *x = (t.view(-1, 1, 1) if t.dim() == 1 else t for t in opened(ctx, gradient.dtype))
        needs_x, needs_weight, needs_bias = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        return (
            gradient * (scale * weight) if needs_x else None,
            None,
            None,
            (gradient * (x[0] - mean) * scale).sum((0, 2, 3)) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
        )
