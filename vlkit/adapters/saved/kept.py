"""What an operation keeps for backward in a few bits, and how it is opened again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkit.number_formats import GROUP, from_few_bits, pack_codes, to_few_bits, unpack_codes

Bits = int | None
"""Bits per value: 2, 4 or 8; None = the plain operation, unchanged."""


@dataclass(frozen=True)
class Kept:
    """A compressed tensor.

    Attributes:
        tensors: what is saved; they go through ``save_for_backward``, so that saved-tensor hooks see them.
        open: these tensors -> the tensor, float32 or wider.
    """

    tensors: tuple[Tensor, ...]
    open: Callable[..., Tensor]


def keep(x: Tensor, bits: int, group: int = GROUP, stochastic: bool = False) -> Kept:
    """Keep [..., N] between the bounds of its groups; see :func:`vlkit.number_formats.to_few_bits`."""
    count = x.shape[-1]
    return Kept(
        to_few_bits(x.detach(), bits, group, stochastic),
        lambda data, bounds: from_few_bits(data, bounds, bits, count, group),
    )


def keep_between(x: Tensor, bits: int, low: float, high: float, stochastic: bool = False) -> Kept:
    """Keep [..., N] whose values lie in [low, high]: exactly ``bits`` per value, no bounds are stored."""
    steps, count = 2**bits - 1, x.shape[-1]
    scaled = (x.detach().float() - low).mul_(steps / (high - low))
    codes = scaled.add_(torch.rand_like(scaled)).floor_() if stochastic else scaled.round_()
    return Kept(
        (pack_codes(codes.clamp_(0, steps).to(torch.uint8), bits),),
        lambda data: unpack_codes(data, bits, count).float().mul_((high - low) / steps).add_(low),
    )


def keep_signs(positive: Tensor) -> Kept:
    """Keep [..., N] bool in one bit per value; opens as 0 and 1."""
    count = positive.shape[-1]
    return Kept((pack_codes(positive.to(torch.uint8), 1),), lambda data: unpack_codes(data, 1, count).float())


def keep_probabilities(p: Tensor, bits: int) -> Kept:
    """Keep rows [..., N] that sum to 1 as codes of ``sqrt(p / max p)``, without bounds.

    Small probabilities keep their resolution under the root, and the scale of a row cancels when it is renormalised:
    ``p = code^2 / sum(code^2)``. The largest code of a row is ``2 ** bits - 1``, so the sum is never 0.
    """
    steps, count = 2**bits - 1, p.shape[-1]
    p = p.detach().float()
    largest = p.amax(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    codes = (p / largest).sqrt_().mul_(steps).round_().clamp_(0, steps).to(torch.uint8)

    def open_(data: Tensor) -> Tensor:
        squares = unpack_codes(data, bits, count).float().square_()
        return squares / squares.sum(-1, keepdim=True).clamp_min_(1)

    return Kept((pack_codes(codes, bits),), open_)


def scaled(kept: Kept, weight: Tensor | None, bias: Tensor | None) -> Kept:
    """The tensor ``x * weight + bias`` of a kept x; only x is stored, since the parameters exist anyway."""
    extra = tuple(t.detach() for t in (weight, bias) if t is not None)

    def open_(*tensors: Tensor) -> Tensor:
        x = kept.open(*tensors[: len(kept.tensors)])
        rest = list(tensors[len(kept.tensors) :])
        if weight is not None:
            x = x * rest.pop(0)
        return x if bias is None else x + rest.pop(0)

    return Kept((*kept.tensors, *extra), open_)


def kept_of(x: Tensor, bits: int) -> Kept:
    """What is kept of ``x`` if a linear map or a product saves it; all that save the same tensor share it."""
    found: _Remembered | None = getattr(x, _NAME, None)
    if found is None or found.version != x._version or (found.bits is not None and found.bits != bits):
        found = _Remembered(keep(x, bits), x._version, bits)
        setattr(x, _NAME, found)
    return found.kept


def remember(x: Tensor, kept: Kept) -> Tensor:
    """Let later operations that save ``x`` use ``kept``; returns ``x``. It is freed with ``x``."""
    setattr(x, _NAME, _Remembered(kept, x._version, None))
    return x


class _Remembered(NamedTuple):
    """What is kept of a tensor, at which version of its values; ``bits`` None = whatever the caller asks for."""

    kept: Kept
    version: int
    bits: int | None


def swapped(x: Tensor, bits: int) -> Kept:
    """Like :func:`kept_of` for an [L, B, D] tensor that may be the transposed view of a [B, L, D] one."""
    whole: Any = x._base
    if whole is not None and whole.dim() == 3 and whole.shape == x.transpose(0, 1).shape and x.dim() == 3:
        view = whole.transpose(0, 1)
        if view.stride() == x.stride() and view.storage_offset() == x.storage_offset():
            kept = kept_of(whole, bits)
            return Kept(kept.tensors, lambda *tensors: kept.open(*tensors).transpose(0, 1))
    return kept_of(x, bits)


_NAME = "_vlkit_kept"
