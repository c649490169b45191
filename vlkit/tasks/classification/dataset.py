"""The dataset that the scripts of classification read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlkit.data.manifest import Dataset
from vlkit.drawn.prepared import demo_dataset
from vlkit.tasks.classification.task import TASK

Demo = Literal["kinds", "dark"]


def classification_dataset(root: Path | None, demo: Demo, columns: str = "") -> Dataset:
    """The prepared dataset in ``root`` or of the rows there, or a demo dataset, made on first use.

    Args:
        root: value of ``--data.root``.
        demo: ``kinds`` (drawn things in a style new to the bases, 16 training images of each) or ``dark`` (the same
            images at half the exposure).
        columns: value of ``--data.columns``.

    Raises:
        UserError: the folder holds no dataset, or one for another task.
    """
    if root is None and demo != "kinds":
        root = demo_dataset(demo, "small")
    return TASK.dataset(root, columns, size="small")
