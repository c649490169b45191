"""Kernels for SHERL on the pooled embedding: each tap is read once in forward and once in backward (CUDA, Triton).

Without them a layer of :mod:`vlkit.adapters.sherl.pooled_lean` is a row of operations on [B, L, D]: a ReLU, a cast, two
or three products forward, as many backward. They take longer to read and write the tap than to compute with it. The
normalised attention is linear in the scores, ``sum_l s_l x_l / S``, so one pass is enough: a program reads some tokens
of one sample, scores them, and adds them to its sums before the next ones arrive. The gradient of a score is
``(x_l u + h) / S`` with an ``h`` that depends on all tokens; what it adds to the query's gradient is ``h`` times
another sum, so backward needs one pass too.

Everything is summed in float32, in a fixed order: the same input gives the same bits. The notation is that of
:mod:`vlkit.adapters.sherl.pooled_lean`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from vlkit.number_formats import has_values

log = logging.getLogger(__name__)

TILE = 8192  # values of a tap that a program holds at once
PROGRAMS = 264  # two for each of 132 multiprocessors; with fewer samples, several programs share one
WIDEST = 8192  # channels; a program holds sums over all of them


def usable(tap: Tensor) -> bool:
    """Whether the kernels can read this tap [B, L, D]: on CUDA, floating point, channels next to each other."""
    if tap.dtype not in (torch.float32, torch.bfloat16, torch.float16) or tap.shape[-1] > WIDEST:
        return False
    if tap.device.type != "cuda" and not _interpreted():
        return False
    return tap.stride(-1) == 1 and (not has_values(tap) or _compiles(tap.device))


def pool(
    tap: Tensor,
    query: Tensor,
    constant: Tensor,
    base: Tensor,
    mask: Tensor | None,
    factor: Tensor,
    eps: float,
    with_base: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Score the tokens of a layer and average them.

    Args:
        tap: [B, L, D], before the ReLU.
        query, constant: ``q`` [B, D] and the rest of the score [B], float32.
        base: ``P``, [B, L] float32.
        mask: [B, L] bool, True = real token, or None.
        factor: ``f``, one value.
        eps: what the total has beside the scores.
        with_base: also return the base token.

    Returns:
        ``s`` [B, L], ``S`` [B], ``m`` [B, D] and ``sum_l P_l x_l`` [B, D] or None, float32.
    """
    batch, length, width = tap.shape
    grid, sizes = _grid(batch, length, width)
    scores, total, mean = (query.new_empty(*size) for size in ((batch, length), (batch,), (batch, width)))
    anchor = query.new_empty(batch, width) if with_base else None
    scored, summed = query.new_empty(batch, grid[1], width), query.new_empty(batch, grid[1], width)
    if has_values(tap):
        tensors = tap, query, constant, base, scores if mask is None else mask, scores, scored, summed
        ends = scores, scored, summed, factor, total, mean, mean if anchor is None else anchor
        with _on(tap.device):
            kernels().pool[grid](*tensors, *_strides(tap), **sizes, MASKED=mask is not None)
            kernels().pool_end[batch,](*ends, length, width, grid[1], eps, **_ends(length, width), BASE=with_base)
    return scores, total, mean, anchor


def pool_backward(
    tap: Tensor, u: Tensor, t: Tensor, scores: Tensor, total: Tensor, query: Tensor, constant: Tensor
) -> None:
    """Gradients of the query and of the rest of the score, written to ``query`` [B, D] and ``constant`` [B].

    Args:
        tap: [B, L, D], before or after the ReLU.
        u, t: gradients of the mean [B, D] and of the total weight [B], float32.
        scores, total: ``s`` [B, L] and ``S`` [B].
        query, constant: results, float32.
    """
    batch, length, width = tap.shape
    grid, sizes = _grid(batch, length, width)
    along = u.new_empty(batch, length)  # x u
    along_sum, plain_sum = u.new_empty(batch, grid[1], width), u.new_empty(batch, grid[1], width)
    if has_values(tap):
        ends = scores, along, along_sum, plain_sum, t, total, query, constant
        with _on(tap.device):
            kernels().pool_backward[grid](tap, u, scores, along, along_sum, plain_sum, *_strides(tap), **sizes)
            kernels().pool_backward_end[batch,](*ends, length, width, grid[1], **_ends(length, width))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _strides(tap: Tensor) -> tuple[int, ...]:
    """Tokens, channels, and the steps to the next sample and token."""
    return tap.shape[1], tap.shape[2], tap.stride(0), tap.stride(1)


def _ends(length: int, width: int) -> dict[str, int]:
    """Constants of the kernels that finish a sample."""
    return {"LENGTH": _power(length), "COLUMNS": _power(width), "num_warps": 4}


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _grid(batch: int, length: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs (samples, parts of a sample) and the constants of a kernel."""
    columns = _power(width)
    rows = max(1, TILE // columns)
    tiles = -(-length // rows)
    parts = min(tiles, -(-PROGRAMS // batch))
    part_rows = -(-tiles // parts) * rows
    sizes = {"PART": part_rows, "ROWS": rows, "COLUMNS": columns, "num_warps": 8}
    return (batch, -(-length // part_rows)), sizes


@functools.cache
def kernels() -> Any:
    """The module of the kernels; imported on a GPU only, because Triton takes its time.

    Raises:
        ImportError: torch for the CPU comes without Triton.
    """
    from vlkit.adapters.sherl import pooled_triton

    return pooled_triton


def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, line by line (for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _compiles(device: torch.device) -> bool:
    """Whether a kernel can be built and run; if not, the reason is logged once."""
    tap, row = torch.ones(1, 1, 16, device=device), torch.ones(1, 16, device=device)
    one = row[0, :1]
    try:
        scores, *_ = pool(tap, row, one, row[:, :1], None, one, 0.0, False)
        return float(scores) == 17
    except Exception as error:  # no Triton, no C compiler, a read-only cache folder ...
        log.warning("SHERL runs without its fused kernels: %s: %s", type(error).__name__, str(error).splitlines()[:1])
        return False
