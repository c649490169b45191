"""Which splits a run uses, checked before its first step, and what identifies their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

from vlkit.data.manifest import Dataset
from vlkit.files import sha256_of

VALIDATION, TEST = "val", "test"
"""Defaults of ``--data.validation`` and ``--data.test``. A split that the user named must be there."""


class Splits(Protocol):
    """The names that a script's ``--data.*`` flags give."""

    train: str
    validation: str
    test: str


def reported_split(dataset: Dataset, data: Splits, held_out: bool = False) -> str:
    """The split to report on: ``data.test``, or the validation split where the dataset has no test split.

    Reads every record that the run will need, so that what is wrong with them is said before hours of training.

    Args:
        dataset: the dataset.
        data: names of its splits.
        held_out: a dataset without a split "val" will do: the script holds out a part of the training split.

    Raises:
        UserError: a split is not there (lists those there are), or has a wrong record.
    """
    test = data.validation if data.test == TEST and TEST not in dataset.splits else data.test
    needed = [data.train, data.validation, test]
    if held_out and data.validation == VALIDATION and VALIDATION not in dataset.splits:
        needed = [data.train, test]
    for split in dict.fromkeys(needed):
        dataset.records(split)
    return test


def data_identity(dataset: Dataset, *splits: str, **more: Any) -> dict[str, Any]:
    """What must stay the same when a run goes on: the dataset's name, and digests of what it is trained on.

    Args:
        dataset: the dataset.
        splits: those whose records matter; one that the dataset does not have is left out.
        more: further content, as JSON values.
    """
    there = [split for split in splits if split in dataset.splits]
    return {
        "dataset": dataset.name,
        **{f"records of {split}": _short(sha256_of(dataset.split_file(split))) for split in there},
        **{name: _short(hashlib.sha256(json.dumps(value).encode()).hexdigest()) for name, value in more.items()},
    }


def _short(digest: str) -> str:
    return digest[:16]
