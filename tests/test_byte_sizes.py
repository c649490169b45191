"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import pytest

from vlkit.byte_sizes import parse_size, size_text
from vlkit.errors import UserError


@pytest.mark.parametrize("text, size", [("8GB", 2**33), ("24 GiB", 24 * 2**30), ("512mb", 2**29), ("1.5G", 3 * 2**29)])
def test_sizes(text: str, size: int):
    assert parse_size("--flag", text) == size


@pytest.mark.parametrize("text", ["", "8", "GB", "-1GB", "0GB", "8 apples", "1e400G", "nanG"])
def test_what_is_no_size_is_named(text: str):
    with pytest.raises(UserError, match=r"--flag .*not a size; write a number with a unit"):
        parse_size("--flag", text)


def test_for_people():
    assert [size_text(size) for size in (0, 3 * 2**19, 2**30, 3 * 2**29)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1.00 GiB",
        "1.50 GiB",
    ]
