"""The vectors of all parts as one matrix that is never loaded whole."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import faiss
import numpy as np

from vlkit.extract import Parts

BLOCK = 1 << 15
"""Vectors in memory at once."""


class PartsMatrix:
    """The rows of several parts, one after another.

    Args:
        parts: the folder of embeddings.
        names: the parts, in the order of their rows.

    Attributes:
        starts: int64 [parts + 1], the first row of each part, and n.

    Raises:
        UserError: a part is damaged or missing.
    """

    def __init__(self, parts: Parts, names: Sequence[str]) -> None:
        self._vectors = [parts.vectors(name) for name in names]
        self.starts = np.cumsum([0, *map(len, self._vectors)])
        self.dim: int = parts.about["dim"]

    def __len__(self) -> int:
        """n."""
        return int(self.starts[-1])

    def part(self, number: int) -> np.ndarray:
        """float32 [rows, D], the vectors of one part."""
        vectors = self._vectors[number].astype(np.float32)
        _release(self._vectors[number])
        return vectors

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row and float32 [b, D] of consecutive blocks of at most :data:`BLOCK` vectors."""
        for start, vectors in zip(self.starts, self._vectors, strict=False):
            for first in range(0, len(vectors), BLOCK):
                yield int(start) + first, vectors[first : first + BLOCK].astype(np.float32)
                _release(vectors)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float32 [..., D], the vectors of some rows."""
        flat = rows.reshape(-1)
        found = np.empty((len(flat), self.dim), np.float32)
        owner = np.searchsorted(self.starts, flat, side="right") - 1
        for number in np.unique(owner):
            of_part = np.flatnonzero(owner == number)
            found[of_part] = self._vectors[number][flat[of_part] - self.starts[number]]
            _release(self._vectors[number])
        return found.reshape(*rows.shape, self.dim)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k rows with the largest inner product, by comparing all: float32 [Q, k] and int64 [Q, k]."""
        heap = faiss.ResultHeap(len(queries), k, keep_max=True)
        for start, block in self.blocks():
            scores, rows = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(np.ascontiguousarray(scores), np.ascontiguousarray(rows + start))
        heap.finalize()
        return heap.D, heap.I


def _release(vectors: np.ndarray) -> None:
    """Take the pages that were read out of this process's memory; they stay in the kernel's cache of files.

    Each read maps 16 pages around the one that is needed, so that after some thousand searches all would be mapped.
    """
    mapped = getattr(vectors, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
