"""Searching an index."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from vlkit.errors import UserError
from vlkit.index.approximate import broadened
from vlkit.index.files import EXACT, IndexFolder, Item, living

log = logging.getLogger(__name__)

_ATTEMPTS = 5


class Hit(NamedTuple):
    """One search result: the inner product with the query (approximate for compressed vectors), and the item."""

    score: float
    item: Item


class VectorIndex:
    """An index opened for searching; it is immutable, so any number of threads may search it.

    Attributes:
        model_id: the model that made the vectors.
        factory: FAISS factory string, "Flat" is exact.
        items: n items.
        vectors: float32 [n, D], in the same order; read-only.
    """

    def __init__(self, folder: IndexFolder):
        """Use :meth:`open`."""
        self.model_id: str = folder.pointer["model"]
        self.factory: str = folder.pointer["factory"]
        self.items, self.vectors = living(*folder.load(), folder.pointer["dim"])
        self._dim: int = folder.pointer["dim"]
        # None: search the memory map of the vectors itself, without a copy.
        self._faiss: Any = folder.read_faiss()
        if self._faiss is not None and self._faiss.ntotal == len(self.items):
            broadened(self._faiss)
            return
        if self.factory != EXACT and self.items:
            log.warning(
                "%s: its %s index is not finished (interrupted run?); searching exactly", folder.path, self.factory
            )
        self._faiss = None

    @classmethod
    def open(cls, path: str | Path, model_id: str | None = None) -> VectorIndex:
        """Open an index to search it.

        Args:
            path: its folder.
            model_id: the model that makes the queries, compared with the one that made the index; None skips the check.

        Raises:
            UserError: there is no index, it is damaged, or another model made it.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return cls(IndexFolder.read(Path(path), model_id))
            except FileNotFoundError as error:
                # A writer replaced files after we read the pointer: read it again.
                missing = error.filename
                time.sleep(0.05 * attempt)
        raise UserError(f"{missing}: no such file; the index is damaged, make it again")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def dim(self) -> int:
        """D, the width of vectors and queries."""
        return self._dim

    def search(self, queries: np.ndarray, k: int, min_score: float | None = None) -> list[list[Hit]]:
        """The k items with the largest inner product for each query, best first; fewer if the index holds fewer.

        Args:
            queries: float32 [Q, D], such as those of :func:`vlkit.index.query.query_vector`.
            k: at least 1.
            min_score: items with a smaller inner product are dropped.

        Raises:
            ValueError: shapes do not fit.
        """
        scores, rows = self.search_rows(queries, k)
        return [
            [
                Hit(float(score), self.items[row])
                for score, row in zip(*pair, strict=True)
                if row >= 0 and (min_score is None or score >= min_score)
            ]
            for pair in zip(scores, rows, strict=True)
        ]

    def search_rows(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`search`: float32 scores [Q, k] and int64 rows of :attr:`items` [Q, k], padded with -inf and -1."""
        queries = self._checked(queries, k)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        found = min(k, len(self.items))
        if found and len(queries):
            if self._faiss is not None:
                scores[:, :found], rows[:, :found] = self._faiss.search(queries, found)
            else:
                metric = faiss.METRIC_INNER_PRODUCT
                scores[:, :found], rows[:, :found] = faiss.knn(queries, self.vectors, found, metric=metric)
            scores[rows < 0] = -np.inf
        return scores, rows

    def recall_against_exact(self, queries: np.ndarray | None = None, k: int = 10) -> float:
        """Share of the exact k nearest items that a search of this index finds, 0 ... 1; 1 for "Flat".

        An item as near as the exact k-th counts as found, so duplicates do no harm.

        Args:
            queries: float32 [Q, D]; None takes up to 256 of the index's own vectors, which is slightly optimistic.
            k: at least 1.
        """
        if queries is None:
            queries = self.vectors[:: max(1, len(self.items) // 256)][:256]
        queries = self._checked(queries, k)
        k = min(k, len(self.items))
        if not k or not len(queries):
            return 1.0
        exact, _ = faiss.knn(queries, np.ascontiguousarray(self.vectors), k, metric=faiss.METRIC_INNER_PRODUCT)
        _, rows = self.search_rows(queries, k)
        scores = np.einsum("qd,qkd->qk", queries, self.vectors[np.maximum(rows, 0)])
        # The last bits of a score depend on how the product was cut into blocks.
        limit = exact[:, -1:] - 1e-5 * np.abs(exact).max()
        return float(np.mean((scores >= limit) & (rows >= 0)))

    def _checked(self, queries: np.ndarray, k: int) -> np.ndarray:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim or k < 1:
            raise ValueError(f"queries have shape {queries.shape} and k is {k}, expected [Q, {self.dim}] and >= 1")
        return queries
