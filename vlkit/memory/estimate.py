"""Predict memory with tensors that have a shape and no values: no weights are made, nothing is computed.

Inside :func:`fake_tensors`, build what trains (:func:`vlkit.memory.shape_base` gives a base to build on) and
call :func:`vlkit.memory.measure_step` as with real tensors.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

M = TypeVar("M", bound=nn.Module)

# What a GPU process takes besides tensors: the CUDA context and library workspaces, and gaps between tensors.
CUDA_CONTEXT_BYTES = 600 * 2**20
CUDA_GAPS = 0.05


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Within it, every tensor made is fake: it claims a device and a shape and takes no memory."""
    # A library may keep a table as a plain tensor instead of a buffer; those few stay real.
    with _FakeTensors(allow_non_fake_inputs=True):
        yield


class _FakeTensors(FakeTensorMode):
    """Looks once whether there is a GPU, not at every operation, which takes long where the driver is asked."""

    @functools.cached_property
    def avoid_device_init(self) -> bool:
        """Whether no accelerator is there that a fake tensor could wake up."""
        return super().avoid_device_init


def fake_copy(module: M, device: torch.device) -> M:
    """A copy of ``module``, whose tensors are on the meta device, with fake tensors that claim ``device``.

    To be called within :func:`fake_tensors`.
    """
    memo: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device=device) for buffer in module.buffers()}
    for parameter in module.parameters():
        values = torch.empty_like(parameter, device=device)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo)


def tensor_budget(gpu_bytes: int) -> int:
    """Bytes that a GPU of ``gpu_bytes`` has for tensors."""
    return int((gpu_bytes - CUDA_CONTEXT_BYTES) / (1 + CUDA_GAPS))


def largest_batch(total_bytes_of: Callable[[int], int], budget: int, limit: int = 1 << 16) -> int:
    """The largest batch size whose step fits, to within 1.5 %; 0 if not even one example does.

    Args:
        total_bytes_of: batch size -> bytes; grows with the batch size.
        budget: bytes.
        limit: largest batch size to look at.
    """
    fits, too_large = 0, limit + 1
    trial = 1
    while too_large - fits > max(1, fits // 64):
        if total_bytes_of(trial) <= budget:
            fits = trial
        else:
            too_large = trial
        trial = min(fits * 2, limit) if too_large > limit else (fits + too_large) // 2
    return fits
