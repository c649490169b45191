"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

from vlkit.errors import UserError


def size_text(count: int) -> str:
    """``1.50 GiB``, ``3.2 MiB``."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def parse_size(flag: str, text: str) -> int:
    """``8GB``, ``24 GiB``, ``512MB`` -> bytes; units are powers of 1024, as GPUs are sold.

    Args:
        flag: the flag that gives ``text``, for the message.
        text: a number with a unit.

    Raises:
        UserError: not a positive number with a unit.
    """
    units = {"M": 2**20, "G": 2**30, "T": 2**40}
    bare = text.strip().upper().removesuffix("B").removesuffix("I")
    try:
        size = int(float(bare[:-1]) * units[bare[-1]])
    except (ValueError, KeyError, IndexError, OverflowError):
        size = 0
    if size <= 0:
        raise UserError(f"{flag} {text}: not a size; write a number with a unit, such as 8GB or 512MB")
    return size
