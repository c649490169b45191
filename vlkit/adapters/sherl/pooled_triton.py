"""The kernels of :mod:`vlkit.adapters.sherl.pooled_kernels`, which describes and launches them.

A program holds a tile of ROWS tokens by COLUMNS channels (a power of two, at least the channels) of one sample. PART is
the number of tokens of a program, LENGTH a power of two that holds all tokens.
"""

# Kernels are compiled from their source: pyright does not know their types.
# pyright: reportInvalidTypeForm=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def tile(sample, row, column, real, exists, tap_row):
    """``x`` of some tokens, [ROWS, COLUMNS] float32; zeros beyond the tokens and channels that there are."""
    x = tl.load(sample + row[:, None] * tap_row + column[None, :], mask=real[:, None] & exists[None, :], other=0.0)
    return tl.maximum(x.to(tl.float32), 0.0)


@triton.jit
def pool(
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
        x = tile(tap + sample * tap_batch, row, column, real, exists, tap_row)
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
def pool_end(
    scores, scored, summed, factor, total, mean, anchor, length, width, parts, eps,
    LENGTH: tl.constexpr, COLUMNS: tl.constexpr, BASE: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, LENGTH), tl.arange(0, COLUMNS)
    exists = column < width
    whole = tl.sum(tl.load(scores + sample * length + row, mask=row < length, other=0.0), 0) + eps
    by_score = tl.zeros([COLUMNS], tl.float32)
    by_base = tl.zeros([COLUMNS], tl.float32)
    for part in range(parts):
        place = (sample * parts + part) * width + column
        by_score += tl.load(scored + place, mask=exists, other=0.0)
        by_base += tl.load(summed + place, mask=exists, other=0.0)
    tl.store(total + sample, whole)
    tl.store(mean + sample * width + column, by_score / whole + tl.load(factor) * by_base, mask=exists)
    if BASE:
        tl.store(anchor + sample * width + column, by_base, mask=exists)


@triton.jit
def pool_backward_end(
    scores, along, along_sum, plain_sum, t, total, query, constant, length, width, parts,
    LENGTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, LENGTH), tl.arange(0, COLUMNS)
    exists = column < width
    s = tl.load(scores + sample * length + row, mask=row < length, other=0.0)
    y = tl.load(along + sample * length + row, mask=row < length, other=0.0)
    share, whole = tl.load(t + sample), tl.load(total + sample)
    h = share - tl.sum(s * (y + share), 0) / whole
    tl.store(constant + sample, tl.sum(tl.where(s > 0, y + h, 0.0), 0) / whole)
    by_along = tl.zeros([COLUMNS], tl.float32)
    by_one = tl.zeros([COLUMNS], tl.float32)
    for part in range(parts):
        place = (sample * parts + part) * width + column
        by_along += tl.load(along_sum + place, mask=exists, other=0.0)
        by_one += tl.load(plain_sum + place, mask=exists, other=0.0)
    tl.store(query + sample * width + column, (by_along + h * by_one) / whole, mask=exists)


@triton.jit
def pool_backward(
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
        x = tile(tap + sample * tap_batch, row, column, real, exists, tap_row)
        y = tl.sum(x * direction[None, :], 1)
        tl.store(along + sample * length + row, y, mask=real)
        counts = tl.load(scores + sample * length + row, mask=real, other=0.0) > 0
        by_along += tl.sum(x * tl.where(counts, y, 0.0)[:, None], 0)
        by_one += tl.sum(x * tl.where(counts, 1.0, 0.0)[:, None], 0)
    place = (sample * tl.num_programs(1) + part) * width + column
    tl.store(along_sum + place, by_along, mask=exists)
    tl.store(plain_sum + place, by_one, mask=exists)
