"""Pack tensors as fp32, bf16 or int8, in 1 to 8 bits between group bounds, and without zeros.

Used for taps saved for backward (:class:`Packed`, in memory), for cached taps (:func:`to_bytes`, on disk), and for the
few bits that compressed activations keep for backward (:func:`to_few_bits`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

NumberFormat = Literal["fp32", "bf16", "int8"]
Stored = NumberFormat
"""Number format of cached taps."""

GROUP = 64  # neighbouring values that share one int8 scale

# --- int8 -------------------------------------------------------------------------------------------------------------


def quantise(x: Tensor, group: int, positive: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise to 1/127 (1/255 if ``positive``) of the largest magnitude among ``group`` neighbours.

    Args:
        x: [..., D] floating point; D is a multiple of ``group``.
        group: neighbouring values that share a scale.
        positive: ``x`` has no negative values.

    Returns:
        Codes [..., D], int8 or (positive) uint8, and scales [..., D / group], float32 or wider.
    """
    grouped = x.unflatten(-1, (x.shape[-1] // group, group))
    steps = 255 if positive else 127
    scale = grouped.abs().amax(-1, keepdim=True).to(torch.promote_types(x.dtype, torch.float32)) / steps
    codes = (grouped / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round_().clamp_(0 if positive else -steps, steps)
    return codes.to(torch.uint8 if positive else torch.int8).flatten(-2), scale.squeeze(-1)


def dequantise(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of :func:`quantise`, computed in ``dtype``: codes [..., D] and scales [..., groups] -> [..., D]."""
    grouped = codes.to(dtype).unflatten(-1, (scales.shape[-1], codes.shape[-1] // scales.shape[-1]))
    return grouped.mul_(scales.to(dtype).unsqueeze(-1)).flatten(-2)


# --- few bits between bounds ------------------------------------------------------------------------------------------


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., N] uint8 below ``2 ** bits`` -> bytes [..., ceil(N bits / 8)]; ``bits`` is 1, 2, 4 or 8."""
    if bits == 8:
        return codes
    per = 8 // bits
    grouped = F.pad(codes, (0, -codes.shape[-1] % per)).unflatten(-1, (-1, per))
    packed = grouped[..., 0].clone()
    for place in range(1, per):
        packed |= grouped[..., place] << (bits * place)
    return packed


def unpack_codes(data: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack_codes`: bytes -> codes [..., count] uint8."""
    if bits == 8:
        return data
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    return ((data.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]


def to_few_bits(x: Tensor, bits: int, group: int = GROUP, stochastic: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise to ``2 ** bits`` even levels between the smallest and the largest of ``group`` neighbours.

    The error is at most half a level. A constant group is exact to the rounding of its bounds.

    Args:
        x: [..., N] floating point; the last group may be shorter.
        bits: 1, 2, 4 or 8.
        group: neighbours along the last axis that share bounds.
        stochastic: round up or down at random so that the expected value is exact.

    Returns:
        Bytes [..., ceil(N bits / 8)] uint8, and bounds [..., groups, 2] float16, the lower one rounded down and the
        upper one up.
    """
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    count = x.shape[-1]
    tail = -count % min(group, count)
    padded = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], tail)], dim=-1) if tail else x
    grouped = padded.unflatten(-1, (-1, min(group, count)))
    low, high = grouped.amin(-1), grouped.amax(-1)  # several times faster than aminmax
    bounds = torch.empty(*low.shape, 2, dtype=torch.float16, device=x.device)
    bounds[..., 0], bounds[..., 1] = _half(low, down=True), _half(high, down=False)
    low, high = bounds.to(x.dtype).unsqueeze(-2).unbind(-1)
    steps = 2**bits - 1
    scaled = (grouped - low).mul_(steps / (high - low).clamp_min_(1e-8))
    codes = (scaled.add_(torch.rand_like(scaled)).floor_() if stochastic else scaled.round_()).clamp_(0, steps)
    return pack_codes(codes.to(torch.uint8).flatten(-2)[..., :count], bits), bounds


def from_few_bits(data: Tensor, bounds: Tensor, bits: int, count: int, group: int = GROUP) -> Tensor:
    """Inverse of :func:`to_few_bits`: [..., count] float32."""
    codes = F.pad(unpack_codes(data, bits, count), (0, -count % min(group, count))).float()
    low, high = bounds.float().unsqueeze(-2).unbind(-1)
    grouped = codes.unflatten(-1, (-1, min(group, count)))
    return grouped.mul_((high - low) / (2**bits - 1)).add_(low).flatten(-2)[..., :count]


def _half(x: Tensor, down: bool) -> Tensor:
    """Round to float16 toward minus (``down``) or plus infinity; values beyond its range become its largest."""
    largest = torch.finfo(torch.float16).max
    half = x.clamp(-largest, largest).to(torch.float16)
    wrong = half.to(x.dtype) > x if down else half.to(x.dtype) < x
    # The bit pattern of the next float16: away from zero it is larger by 1.
    bits = half.view(torch.int16)
    away = (half < 0) if down else (half > 0)
    smallest = torch.full_like(bits, -32767 if down else 1)
    moved = torch.where(half == 0, smallest, torch.where(away, bits + 1, bits - 1)).view(torch.float16)
    return torch.where(wrong, moved, half).clamp(-largest, largest)


# --- bytes on disk ----------------------------------------------------------------------------------------------------


def bytes_of(count: int, stored: NumberFormat | Literal["bool"]) -> int:
    """Number of bytes that :func:`to_bytes` needs for ``count`` values."""
    if stored == "int8":
        return -(-count // GROUP) * (GROUP + 4)
    return count * {"bool": 1, "bf16": 2, "fp32": 4}[stored]


def to_bytes(x: Tensor, stored: NumberFormat | Literal["bool"]) -> Tensor:
    """Values [..., N] -> bytes [..., size] uint8; int8 is padded to whole groups and stores codes, then scales."""
    if stored == "bool":
        return x.to(torch.uint8)
    if stored != "int8":
        return x.to(torch.float32 if stored == "fp32" else torch.bfloat16).contiguous().view(torch.uint8)
    codes, scales = quantise(F.pad(x.float(), (0, -x.shape[-1] % GROUP)), GROUP)
    return torch.cat([codes.view(torch.uint8), scales.contiguous().view(torch.uint8)], dim=-1)


def from_bytes(data: Tensor, count: int, stored: NumberFormat | Literal["bool"], dtype: torch.dtype) -> Tensor:
    """Inverse of :func:`to_bytes`: bytes [..., size] uint8 -> values [..., count] in ``dtype`` (bool stays bool)."""
    if stored == "bool":
        return data.bool()
    if stored != "int8":
        return data.view(torch.float32 if stored == "fp32" else torch.bfloat16).to(dtype)
    padded = count + -count % GROUP
    codes, scales = data[..., :padded].view(torch.int8), data[..., padded:].view(torch.float32)
    return dequantise(codes, scales, torch.float32)[..., :count].to(dtype)


# --- tensors saved for backward ---------------------------------------------------------------------------------------

_share: ContextVar[float] = ContextVar("share of values saved of a tensor without values", default=1.0)


@contextlib.contextmanager
def assume_share(share: float) -> Iterator[None]:
    """Inside the context, memory predictions assume that the fraction ``share`` of a tap's values is saved.

    It applies where the number of saved values depends on the data. Half of the values of a saved row are then above
    zero, or more if ``share`` requires it. Default: 1, the upper bound.
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


class Packed:
    """One packed tensor [..., D]. Only the gradient uses it: the forward uses the original tensor.

    Args:
        x: the tensor; it is not modified. With ``fp32`` and without ``sparse`` it is stored without a copy.
        number_format: ``fp32`` keeps the tensor's own dtype without loss. ``bf16`` rounds to 8 significant bits;
            ``int8`` quantises with one scale per 64 neighbours (:func:`quantise`).
        positive: ``x`` has no negative values (it is the output of a ReLU).
        sparse: drop zeros and save one bit per value instead, if that is smaller. Exact, but on CUDA the host waits
            for the device. Needs ``positive``.
    """

    def __init__(
        self, x: Tensor, number_format: NumberFormat = "fp32", positive: bool = False, sparse: bool = False
    ) -> None:
        self._shape, self._dtype, self._scale, self._bits = x.shape, x.dtype, None, None
        x = x.flatten(2) if x.dim() == 4 else x  # in a grid, positions of one channel share a scale
        self._flat = x.shape
        if number_format == "int8":
            x, self._scale = quantise(x, _group(x.shape[-1]), positive)
        elif number_format == "bf16" and x.element_size() > 2:
            x = x.to(torch.bfloat16)
        if sparse:
            x, self._bits = _without_zeros(x) if has_values(x) else _as_if_without_zeros(x)
        self._values = x

    def open(self, dtype: torch.dtype | None = None) -> Tensor:
        """Unpack the tensor in ``dtype`` (default: its original dtype)."""
        x = self._values if self._bits is None else _with_zeros(self._values, self._bits, math.prod(self._shape))
        dtype = dtype or self._dtype
        if self._scale is None:
            return x.view(self._shape).to(dtype)
        return dequantise(x.view(self._flat), self._scale, dtype).view(self._shape)

    def stored(self) -> Tensor:
        """The tensor as it is stored if that is floating point without gaps, otherwise unpacked."""
        return self._values.view(self._shape) if self._scale is None and self._bits is None else self.open()


def _group(width: int) -> int:
    """Values per scale: the common divisor of the width and 64, or the whole row if that is below 16."""
    group = math.gcd(width, GROUP)
    return group if group >= 16 else width


def has_values(x: Tensor) -> bool:
    """Whether ``x`` holds data: the fake tensors of memory predictions do not and cannot be searched."""
    return not isinstance(x, FakeTensor)


def assumed_rows(count: int) -> int:
    """Number of saved rows out of ``count`` that memory predictions assume."""
    return math.ceil(count * min(1.0, 2 * _share.get()))


def _without_zeros(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The flattened values above zero and one bit per value; ``x`` and None if that would be larger."""
    flat = x.reshape(-1)
    mask = flat > 0
    # On the CPU, numpy finds and packs bits several times faster than torch.
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
    padded = F.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (padded * _powers(mask.device)).sum(1, dtype=torch.uint8)


def _unpack_bits(bits: Tensor, count: int) -> Tensor:
    if bits.device.type == "cpu":
        return _numpy(np.unpackbits, bits)[:count].view(torch.bool)  # numpy finds bools six times faster than bytes
    return (bits.unsqueeze(1) & _powers(bits.device)).ne(0).view(-1)[:count]


def _powers(device: torch.device) -> Tensor:
    return 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def _numpy(function: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(function(x.numpy()))
