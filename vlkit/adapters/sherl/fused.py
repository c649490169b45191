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

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlkit.number_formats import has_values

if TYPE_CHECKING:
    triton: Any
    tl: Any
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:  # torch for the CPU comes without it
        triton = None

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


def pool(tap: Tensor, query: Tensor, constant: Tensor, base: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Score and sum the tokens of a layer.

    Args:
        tap: [B, L, D], before the ReLU.
        query, constant: ``q`` [B, D] and the rest of the score [B], float32.
        base: ``P``, [B, L] float32.
        mask: [B, L] bool, True = real token, or None.

    Returns:
        ``s`` [B, L], ``sum_l s_l x_l`` [B, D] and ``sum_l P_l x_l`` [B, D], float32.
    """
    batch, length, width = tap.shape
    grid, sizes = _grid(batch, length, width)
    scores = query.new_empty(batch, length)
    scored, summed = query.new_empty(batch, grid[1], width), query.new_empty(batch, grid[1], width)
    if has_values(tap):
        tensors = tap, query.contiguous(), constant.contiguous(), base.contiguous(), scores if mask is None else mask
        _pool[grid](
            *(*tensors, scores, scored, summed), *(length, width, tap.stride(0), tap.stride(1)),
            **sizes, MASKED=mask is not None,
        )  # fmt: skip
    return scores, scored.sum(1), summed.sum(1)


def pool_backward(tap: Tensor, u: Tensor, t: Tensor, scores: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the scores before their ReLU, and of the query.

    Args:
        tap: [B, L, D], before or after the ReLU.
        u, t: gradients of the mean [B, D] and of the total weight [B], float32.
        scores, total: ``s`` [B, L] and ``S`` [B, 1].

    Returns:
        [B, L] and [B, D], float32.
    """
    batch, length, width = tap.shape
    grid, sizes = _grid(batch, length, width)
    along = u.new_empty(batch, length)  # x u
    along_sum, plain_sum = u.new_empty(batch, grid[1], width), u.new_empty(batch, grid[1], width)
    if has_values(tap):
        tensors = tap, u.contiguous(), scores, along, along_sum, plain_sum
        _pool_backward[grid](*tensors, length, width, tap.stride(0), tap.stride(1), **sizes)
    attention = along + t.unsqueeze(1)  # its gradient
    h = t.unsqueeze(1) - (scores * attention).sum(1, keepdim=True) / total
    through = (along + h) / total * (scores > 0)
    return through, torch.addcmul(along_sum.sum(1), h, plain_sum.sum(1)) / total


def _grid(batch: int, length: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs (samples, parts of a sample) and the constants of a kernel."""
    columns = 1 << (width - 1).bit_length()
    rows = max(1, TILE // columns)
    tiles = -(-length // rows)
    parts = min(tiles, -(-PROGRAMS // batch))
    part_rows = -(-tiles // parts) * rows
    sizes = {"PART": part_rows, "ROWS": rows, "COLUMNS": columns, "num_warps": 8}
    return (batch, -(-length // part_rows)), sizes


def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, line by line (for tests)."""
    return triton is not None and os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _compiles(device: torch.device) -> bool:
    """Whether a kernel can be built and run; if not, the reason is logged once."""
    if triton is None:
        return False
    tap, row = torch.ones(1, 1, 16, device=device), torch.ones(1, 16, device=device)
    try:
        scores, *_ = pool(tap, row, row[0, :1], row[:, :1], None)
        return float(scores) == 17
    except Exception as error:  # no C compiler, no matching driver, a read-only cache folder ...
        log.warning("SHERL runs without its fused kernels: %s: %s", type(error).__name__, str(error).splitlines()[:1])
        return False


if triton is not None:

    @triton.jit
    def _pool(
        tap, query, constant, base, mask, scores, scored, summed, length, width, tap_batch, tap_row,
        PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
    ):  # fmt: skip
        sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        column = tl.arange(0, COLUMNS)
        exists = column < width
        q = tl.load(query + sample * width + column, mask=exists, other=0.0)
        c = tl.load(constant + sample)
        by_score = tl.zeros([COLUMNS], tl.float32)
        by_base = tl.zeros([COLUMNS], tl.float32)
        for start in range(part * PART, tl.minimum(part * PART + PART, length), ROWS):
            row = start + tl.arange(0, ROWS)
            real = row < length
            place = tap + sample * tap_batch + row[:, None] * tap_row + column[None, :]
            x = tl.load(place, mask=real[:, None] & exists[None, :], other=0.0).to(tl.float32)
            x = tl.maximum(x, 0.0)
            s = tl.sum(x * q[None, :], 1) + c
            if MASKED:
                s = tl.where(tl.load(mask + sample * length + row, mask=real, other=0) != 0, s, 0.0)
            s = tl.where(real, tl.maximum(s, 0.0), 0.0)
            tl.store(scores + sample * length + row, s, mask=real)
            p = tl.load(base + sample * length + row, mask=real, other=0.0)
            by_score += tl.sum(x * s[:, None], 0)
            by_base += tl.sum(x * p[:, None], 0)
        place = (sample * tl.num_programs(1) + part) * width + column
        tl.store(scored + place, by_score, mask=exists)
        tl.store(summed + place, by_base, mask=exists)

    @triton.jit
    def _pool_backward(
        tap, u, scores, along, along_sum, plain_sum, length, width, tap_batch, tap_row,
        PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        column = tl.arange(0, COLUMNS)
        exists = column < width
        direction = tl.load(u + sample * width + column, mask=exists, other=0.0)
        by_along = tl.zeros([COLUMNS], tl.float32)
        by_one = tl.zeros([COLUMNS], tl.float32)
        for start in range(part * PART, tl.minimum(part * PART + PART, length), ROWS):
            row = start + tl.arange(0, ROWS)
            real = row < length
            place = tap + sample * tap_batch + row[:, None] * tap_row + column[None, :]
            x = tl.load(place, mask=real[:, None] & exists[None, :], other=0.0).to(tl.float32)
            x = tl.maximum(x, 0.0)
            y = tl.sum(x * direction[None, :], 1)
            tl.store(along + sample * length + row, y, mask=real)
            counts = tl.load(scores + sample * length + row, mask=real, other=0.0) > 0
            by_along += tl.sum(x * tl.where(counts, y, 0.0)[:, None], 0)
            by_one += tl.sum(x * tl.where(counts, 1.0, 0.0)[:, None], 0)
        place = (sample * tl.num_programs(1) + part) * width + column
        tl.store(along_sum + place, by_along, mask=exists)
        tl.store(plain_sum + place, by_one, mask=exists)
