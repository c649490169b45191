"""vlkit's index over the parts that ``vlkit embed`` writes, with its own choice of index or every vector compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from search_job import K, stage

from vlkit.extract import Parts
from vlkit.index.disk import DiskIndex, index_embeddings


def build(data: Path, index: Path) -> None:
    index_embeddings(Parts.read(data / "parts"), index, os.environ.get("FACTORY", "auto"))


def open_index(index: Path) -> Callable[[np.ndarray], np.ndarray]:
    opened = DiskIndex.open(index)
    return lambda queries: opened.search_rows(queries, K)[1]


if __name__ == "__main__":
    stage(build, open_index)
