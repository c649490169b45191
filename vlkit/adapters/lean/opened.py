"""Tensors opened from a packed copy, whose operations save the packed copy for backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlkit.number_formats import Packed


class _Instead(NamedTuple):
    """What the graph holds in place of a tensor: its packed copy, and how the operation saw it."""

    packed: Packed
    dtype: torch.dtype
    shape: torch.Size


@contextlib.contextmanager
def saved_packed(opened: Tensor, packed: Packed) -> Iterator[None]:
    """Inside the context, operations that save ``opened`` for backward save ``packed`` and open it again there.

    A reducer that reads an opened tap would otherwise hold it in full until backward reaches that reducer, and all
    taps of a chunk at once. Views that are not the whole tensor in order are saved as they are.

    Args:
        opened: contiguous, the result of ``packed.open``.
        packed: its packed copy.
    """

    # Not the data pointer, which FakeTensors lack; and the hooks must not hold the opened tensor.
    storage, count, dtype = opened.untyped_storage()._cdata, opened.numel(), opened.dtype

    def pack(x: Tensor) -> Tensor | _Instead:
        whole = x.numel() == count and x.dtype == dtype and x.is_contiguous()
        if whole and x.untyped_storage()._cdata == storage:
            return _Instead(packed, x.dtype, x.shape)
        return x

    def unpack(x: Tensor | _Instead) -> Tensor:
        return x.packed.open(x.dtype).view(x.shape) if isinstance(x, _Instead) else x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
