"""Predict memory with fake tensors, which have a shape but no values: nothing is allocated or computed.

Inside :func:`fake_tensors`, build the model (:func:`vlkit.memory.shape_base` returns a base for it) and call
:func:`vlkit.memory.measure_step` as with real tensors.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

M = TypeVar("M", bound=nn.Module)

# Memory of a GPU process besides tensors: the CUDA context with library workspaces, and gaps between tensors.
CUDA_CONTEXT_BYTES = 600 * 2**20
CUDA_GAPS = 0.05


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside the context, every new tensor is fake: it has a device and a shape but uses no memory."""
    # A library may store a table as a plain tensor instead of a buffer; these stay real.
    with _FakeTensors(allow_non_fake_inputs=True):
        yield


class _FakeTensors(FakeTensorMode):
    """Checks only once whether there is a GPU, because asking the driver at every operation is slow."""

    @functools.cached_property
    def avoid_device_init(self) -> bool:
        """Whether there is no accelerator that a fake tensor could initialise."""
        return super().avoid_device_init


def fake_copy(module: M, device: torch.device) -> M:
    """Copy ``module`` without its values: tensors that are shared stay shared.

    Call it inside :func:`fake_tensors` for a module on the meta device: the copy has fake tensors on ``device``.
    Outside, the copy may lie on the meta device itself.
    """
    memo: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device=device) for buffer in module.buffers()}
    for parameter in module.parameters():
        values = torch.empty_like(parameter, device=device)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo)


def tensor_budget(gpu_bytes: int) -> int:
    """Bytes that a GPU with ``gpu_bytes`` of memory can use for tensors."""
    return int((gpu_bytes - CUDA_CONTEXT_BYTES) / (1 + CUDA_GAPS))


def largest_batch(total_bytes_of: Callable[[int], int], budget: int, limit: int = 1 << 16) -> int:
    """The largest batch size whose step fits, to within 1.5 %; 0 if not even one example fits.

    Trials of large batches take minutes if a batch is cut into many chunks, so the search needs few of them: it
    interpolates linearly between known points (false position, Illinois variant).

    Args:
        total_bytes_of: batch size -> bytes; grows with the batch size.
        budget: bytes.
        limit: largest batch size to try.
    """
    fits, too_large, before = (0, 0.0), (limit + 1, math.inf), (0, 0.0)  # sizes, with their distance to the budget
    trial, fitted = 1, None
    while too_large[0] - fits[0] > max(1, fits[0] // 64):
        distance = budget - total_bytes_of(trial)
        if distance >= 0:
            if fitted is True:
                too_large = (too_large[0], too_large[1] / 2)
            before, fits, fitted = fits, (trial, float(distance)), True
        else:
            if fitted is False:
                fits = (fits[0], fits[1] / 2)
            too_large, fitted = (trial, float(-distance)), False
        trial = _on_line(before, fits, too_large, limit)
    return fits[0]


def _on_line(before: tuple[int, float], fits: tuple[int, float], too_large: tuple[int, float], limit: int) -> int:
    """The next size to try: at most four times the largest fitting size until some size was too large."""
    (size, room), step = fits, max(1, fits[0] // 64)
    if too_large[1] < math.inf:
        guess = size + (too_large[0] - size) * room / max(room + too_large[1], 1.0)
        return min(max(int(guess), size + step), max(too_large[0] - step, size + 1))
    fall = (before[1] - room) / max(size - before[0], 1)
    guess = size + room / fall if before[0] and fall > 0 else math.inf
    return min(max(int(min(guess, 4 * size)), size + step), limit)
