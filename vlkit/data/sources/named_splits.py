"""The names that splits have in datasets, and which splits have to be made where some are missing."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

CALLED = {
    "train": "train",
    "val": "val",
    "test": "test",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "training": "train",
    "restval": "train",
    "testing": "test",
}
"""Name in a dataset, in lower case -> name of the split here. Other names stay as they are."""


@dataclass(kw_only=True)
class SplitShares:
    """Flags of a script that makes the splits which a dataset does not name."""

    val: float = 0.1
    """Share of the images for validation, if there is no such split."""
    test: float = 0.1
    """Share of the images for testing, if there is a single split."""
    seed: int = 0
    """Seed of these splits."""


def plain_split(name: str) -> str:
    """The name of a split as ``dataset.json`` may have it; "train" if nothing is left of it."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name.strip()).strip("-._") or "train"
    return CALLED.get(plain.lower(), plain)


def split_to_divide(there: Collection[str], val: float, test: float) -> tuple[str, float, float] | None:
    """The split that gives others a share, and the shares of val and test; None if nothing is missing.

    A single split gives both. Several without "val" among them keep their test split, and "train" gives ``val``.
    """
    if "val" in there or ("train" not in there and len(there) > 1):
        return None
    test = test if len(there) == 1 else 0.0
    (only,) = there if len(there) == 1 else ("train",)
    return (only, val, test) if val or test else None
