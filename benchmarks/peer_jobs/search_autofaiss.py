"""autofaiss, the index stage of clip-retrieval, with its own choice of index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from autofaiss import build_index  # pyright: ignore[reportMissingImports]
from search_job import K, stage


def build(data: Path, index: Path) -> None:
    index.mkdir(parents=True, exist_ok=True)
    build_index(
        embeddings=str(data / "vectors"),
        index_path=str(index / "knn.index"),
        index_infos_path=str(index / "knn.json"),
        metric_type="ip",
        should_be_memory_mappable=True,
        save_on_disk=True,
        verbose=40,
    )


def open_index(index: Path) -> Callable[[np.ndarray], np.ndarray]:
    opened = faiss.read_index(str(index / "knn.index"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    return lambda queries: opened.search(queries, K)[1]


if __name__ == "__main__":
    stage(build, open_index)
