"""The splits of a run, checked before its first step, and digests that identify their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

from vlkit.data.manifest import Dataset
from vlkit.files import sha256_of

VALIDATION, TEST = "val", "test"
"""Defaults of ``--data.validation`` and ``--data.test``. A split that the user names must exist."""


class Splits(Protocol):
    """Split names from a script's ``--data.*`` flags."""

    train: str
    validation: str
    test: str


def reported_split(dataset: Dataset, data: Splits, held_out: bool = False) -> str:
    """The split to report on: ``data.test``, or the validation split where the dataset has no test split.

    Reads every record that the run will need, so that errors in them are reported before training starts.

    Args:
        dataset: the dataset.
        data: names of the splits.
        held_out: allow a dataset without a split "val": the script holds out a part of the training split.

    Raises:
        UserError: a split does not exist (lists the existing ones), or has an invalid record.
    """
    test = data.validation if data.test == TEST and TEST not in dataset.splits else data.test
    needed = [data.train, data.validation, test]
    if held_out and data.validation == VALIDATION and VALIDATION not in dataset.splits:
        needed = [data.train, test]
    for split in dict.fromkeys(needed):
        dataset.read_ahead(split)
    return test


def data_identity(dataset: Dataset, *splits: str, **more: Any) -> dict[str, Any]:
    """Values that must not change when a run continues: the dataset's name, and digests of its training data.

    Args:
        dataset: the dataset.
        splits: splits whose records matter; those that the dataset does not have are skipped.
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
