"""Taps as they are kept for backward: cast or quantised, and without the values that have no say in it.

Only the gradient sees these copies; the forward is done with the tap itself before it is packed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

TapDtype = Literal["fp32", "bf16", "int8"]
"""Number format of what is kept of a tap. ``fp32`` means the tap's own format: nothing is lost."""

GROUP = 64  # values that share a scale in int8

_share: ContextVar[float] = ContextVar("share of values kept of a tensor without values", default=1.0)


@contextlib.contextmanager
def assume_share(share: float) -> Iterator[None]:
    """Within it, predictions assume that ``share`` of a tap's values is kept where that depends on the values.

    Half of the values of a kept row are above zero then, unless ``share`` asks for more. Default: 1, the upper bound.
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


class Kept:
    """One tensor [..., D], packed.

    Args:
        x: what to keep; not changed. With ``fp32`` and ``sparse`` off it is kept itself, without a copy.
        tap_dtype: ``bf16`` rounds to 8 significant bits. ``int8`` stores steps of 1/127 of the largest magnitude among
            64 neighbours (1/255, if nothing is negative).
        positive: ``x`` has no negative value (it comes out of a ReLU).
        sparse: leave zeros out and keep one bit a value instead, if that is smaller. Exact, but on CUDA the host waits
            for the device. Needs ``positive``.
    """

    def __init__(self, x: Tensor, tap_dtype: TapDtype = "fp32", positive: bool = False, sparse: bool = False) -> None:
        self._shape, self._dtype, self._scale, self._bits = x.shape, x.dtype, None, None
        x = x.flatten(2) if x.dim() == 4 else x  # of a grid, places of one channel share a scale
        if tap_dtype == "int8":
            x, self._scale = _quantise(x, positive)
            self._group = x.shape[-1] // self._scale.shape[-1]
        elif tap_dtype == "bf16" and x.element_size() > 2:
            x = x.to(torch.bfloat16)
        if sparse:
            x, self._bits = _without_zeros(x) if has_values(x) else _as_if_without_zeros(x)
        self._values = x

    def open(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor again, in ``dtype`` (default: the one it had)."""
        x = self._values if self._bits is None else _with_zeros(self._values, self._bits, math.prod(self._shape))
        dtype = dtype or self._dtype
        if self._scale is None:
            return x.view(self._shape).to(dtype)
        scale = self._scale.to(dtype).unsqueeze(-1)  # [..., groups, 1]
        return x.to(dtype).view(*scale.shape[:-1], self._group).mul_(scale).view(self._shape)


def has_values(x: Tensor) -> bool:
    """Whether ``x`` holds numbers: the fake tensors that memory is predicted with do not, and cannot be searched."""
    return not isinstance(x, FakeTensor)


def assumed_rows(count: int) -> int:
    """How many of ``count`` rows predictions count as kept."""
    return math.ceil(count * min(1.0, 2 * _share.get()))


def _quantise(x: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """Codes [..., D] (uint8 or int8) and scales [..., D / group]; a width that 16 does not divide is one group."""
    width = x.shape[-1]
    group = math.gcd(width, GROUP)
    group = group if group >= 16 else width
    grouped = x.reshape(*x.shape[:-1], width // group, group)
    steps = 255 if positive else 127
    scale = grouped.abs().amax(-1, keepdim=True).to(torch.promote_types(x.dtype, torch.float32)) / steps
    codes = (grouped / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round_().clamp_(0 if positive else -steps, steps)
    return codes.to(torch.uint8 if positive else torch.int8).view(x.shape), scale.squeeze(-1)


def _without_zeros(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The values above zero in a row, and a bit for each value; ``x`` and None if that would be larger."""
    flat = x.reshape(-1)
    mask = flat > 0
    # On the CPU numpy finds and packs bits several times faster than torch.
    index = _numpy(np.flatnonzero, mask) if x.device.type == "cpu" else mask.nonzero().squeeze(1)
    if len(index) * x.element_size() + len(flat) // 8 >= len(flat) * x.element_size():
        return x, None
    return flat.index_select(0, index), _pack_bits(mask)


def _as_if_without_zeros(x: Tensor) -> tuple[Tensor, Tensor | None]:
    values, bits = math.ceil(x.numel() * max(0.5, _share.get())), x.numel() // 8
    if values * x.element_size() + bits >= x.numel() * x.element_size():
        return x, None
    return x.new_empty(values), x.new_empty(bits, dtype=torch.uint8)


def _with_zeros(values: Tensor, bits: Tensor, count: int) -> Tensor:
    if not has_values(values):
        return values.new_zeros(count)
    mask = _unpack_bits(bits, count)
    index = _numpy(np.flatnonzero, mask) if bits.device.type == "cpu" else mask.nonzero().squeeze(1)
    return values.new_zeros(count).scatter_(0, index, values)


def _pack_bits(mask: Tensor) -> Tensor:
    """[N] bool -> [N / 8, rounded up] uint8."""
    if mask.device.type == "cpu":
        return _numpy(np.packbits, mask)
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (padded * _powers(mask.device)).sum(1, dtype=torch.uint8)


def _unpack_bits(bits: Tensor, count: int) -> Tensor:
    if bits.device.type == "cpu":
        return _numpy(np.unpackbits, bits)[:count].view(torch.bool)  # numpy finds bools six times faster than bytes
    return (bits.unsqueeze(1) & _powers(bits.device)).ne(0).view(-1)[:count]


def _powers(device: torch.device) -> Tensor:
    return 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def _numpy(function: object, x: Tensor) -> Tensor:
    return torch.from_numpy(function(x.numpy()))
