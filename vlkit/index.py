"""A folder of embeddings to search: FAISS vectors with ids and metadata, updated in place.

    with VectorIndex.create_or_open("idx", dim=512, model_id="ViT-B-32 …") as index:
        plan = index.diff(items)                  # what is new, changed, gone
        index.remove(plan.removed)
        for batch in batches(plan.todo):
            index.add(batch, embed(batch))
            index.commit()                        # everything up to here survives a crash
    hits = VectorIndex.open("idx").search(queries, k=5)

Scores are inner products: cosine similarity if all vectors have unit norm. Q queries, D embedding width.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import faiss
import filelock
import numpy as np

from vlkit.errors import UserError, some
from vlkit.index_files import POINTER, IndexFolder, Item

log = logging.getLogger(__name__)

# Breadth of an approximate search: clusters visited (at least, and as a share of all), and the candidate list of a
# graph. FAISS's own defaults (1 and 16) lose many neighbours.
MIN_PROBES, PROBES_SHARE, GRAPH_CANDIDATES = 8, 1 / 16, 128


class Hit(NamedTuple):
    """One search result: the inner product with the query, and the item found."""

    score: float
    item: Item


@dataclass(frozen=True)
class Plan:
    """What has to be done to bring an index up to date.

    Attributes:
        new: items the index does not hold.
        changed: items whose source changed since they were added.
        unchanged: number of items that can be skipped.
        removed: ids the index holds and the given items lack.
    """

    new: list[Item]
    changed: list[Item]
    unchanged: int
    removed: list[str]

    @property
    def todo(self) -> list[Item]:
        """Items to embed and add."""
        return self.new + self.changed


class VectorIndex:
    """Vectors with ids on disk. One process writes at a time; opened to read, it may be searched from many threads."""

    def __init__(self, folder: IndexFolder, lock: filelock.BaseFileLock | None = None):
        """Use :meth:`open` or :meth:`create_or_open`. ``lock`` is held while the index may be written."""
        self._folder = folder
        self._lock = lock
        self._rows, self._segments = folder.load()
        self._row_of = {item.id: row for row, item in enumerate(self._rows) if item is not None}
        self._pending: list[tuple[Item, str, np.ndarray]] = []
        self._pending_removed: set[str] = set()
        self._restamped = False
        self._faiss: faiss.Index | None = None

    @classmethod
    def open(cls, path: str | Path, model_id: str | None = None) -> VectorIndex:
        """Open an index to search it.

        Args:
            path: its folder.
            model_id: what made the queries; None skips the check.

        Raises:
            UserError: there is no index, it is damaged, or another model made it.
        """
        for attempt in range(5):
            index = None
            try:
                index = cls(IndexFolder.read(Path(path)))
                index._check_model(model_id)
                index._faiss = index._current_faiss()
                return index
            except FileNotFoundError as error:
                # A writer replaced files between our reading of the pointer and of what it names: read it again.
                if attempt == 4:
                    raise UserError(f"{error.filename or error}: missing; the index is damaged, make it again") from None
                time.sleep(0.1)
        raise AssertionError("unreachable")

    @classmethod
    def create_or_open(cls, path: str | Path, dim: int, model_id: str, factory: str | None = None) -> VectorIndex:
        """Open an index to write it, made empty if there is none. Close it, or use it as a context manager.

        Args:
            path: its folder.
            dim: D.
            model_id: everything that decides the vectors (base, adapter, fingerprint), readable: it stands in messages.
            factory: FAISS factory string, e.g. "Flat" (exact), "HNSW32", "IVF256,Flat", "IVF1024,PQ32". None keeps the
                index's own, "Flat" for a new one. Another one than before is built from the kept vectors.

        Raises:
            UserError: another model made the index, ``factory`` is not understood, or another process writes.
        """
        path = Path(path)
        if factory is not None:
            _new_faiss(dim, factory)
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{path}: another process is writing this index; wait for it to finish") from None
        try:
            if not (path / POINTER).exists():
                IndexFolder.create(path, model_id, dim, factory or "Flat")
            index = cls(IndexFolder.read(path), lock)
            index._check_model(model_id)
            if index.dim != dim:
                raise UserError(f"{path}: holds vectors of width {index.dim}, not {dim}; use another folder")
            if factory is not None and factory != index.factory:
                index._folder.set_factory(factory)
            index._folder.delete_unused()
            return index
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> VectorIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Build after success; after an error or Ctrl-C keep what was added, and build the next time."""
        try:
            if kind is None:
                self.build()
            else:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Let other processes write. What was not committed is lost."""
        if self._lock is not None:
            self._lock.release()

    def __len__(self) -> int:
        """Number of items, those not yet committed included."""
        return len(self._row_of)

    @property
    def dim(self) -> int:
        """D, the width of vectors."""
        return self._folder.pointer["dim"]

    @property
    def factory(self) -> str:
        """FAISS factory string."""
        return self._folder.pointer["factory"]

    @property
    def model_id(self) -> str:
        """What made the vectors."""
        return self._folder.pointer["model"]

    @property
    def items(self) -> list[Item]:
        """All items, in the order of :attr:`vectors`."""
        return [item for item in self._rows if item is not None] + [item for item, _, _ in self._pending]

    @property
    def vectors(self) -> np.ndarray:
        """All vectors, float32 [n, D]; a read-only memory map where possible."""
        self._require_saved()
        alive = np.array([item is not None for item in self._rows], dtype=bool)
        if len(self._segments) == 1 and alive.all():
            return self._segments[0]
        kept, start = [np.empty((0, self.dim), dtype=np.float32)], 0
        for segment in self._segments:
            kept.append(segment[alive[start : start + len(segment)]])
            start += len(segment)
        return np.concatenate(kept)

    def diff(self, items: Iterable[Item], digest: Callable[[Item], str] | None = None) -> Plan:
        """Compare the wanted items with the index.

        Args:
            items: everything the index should hold, ``stamp`` filled in.
            digest: computes an item's content hash; called only where the stamp differs and the index knows a hash.
                Equal hashes make the item unchanged and its new stamp is remembered.

        Raises:
            UserError: an id occurs twice.
        """
        self._require_saved()
        new, changed, unchanged, seen = [], [], 0, set()
        for item in items:
            if item.id in seen:
                raise UserError(f"items: id {item.id!r} occurs twice; ids must be unique")
            seen.add(item.id)
            if item.id not in self._row_of:
                new.append(item)
                continue
            row = self._row_of[item.id]
            known = self._rows[row]
            if known.stamp != item.stamp:
                if not (known.digest and digest) or digest(item) != known.digest:
                    changed.append(item)
                    continue
                self._rows[row] = replace(known, stamp=item.stamp)
                self._restamped = True
            unchanged += 1
        return Plan(new, changed, unchanged, [name for name in self._row_of if name not in seen])

    def add(self, items: Sequence[Item], vectors: np.ndarray) -> None:
        """Add items, or replace those with the same id; kept in memory until :meth:`commit`.

        Args:
            items: n items with different ids.
            vectors: float32 [n, D], finite.

        Raises:
            UserError: a vector is not finite, or an id occurs twice.
            ValueError: shapes do not fit.
        """
        self._require_lock()
        vectors = np.array(vectors, dtype=np.float32)
        if vectors.shape != (len(items), self.dim):
            raise ValueError(f"vectors have shape {vectors.shape}, expected ({len(items)}, {self.dim})")
        broken = [item.id for item, vector in zip(items, vectors, strict=True) if not np.isfinite(vector).all()]
        if broken:
            raise UserError(f"{len(broken)} vectors are not finite ({some(broken)}); the model's output is broken")
        if len({item.id for item in items}) < len(items):
            raise UserError("items: an id occurs twice; ids must be unique")
        lines = [item.to_line() for item in items]
        self.remove([item.id for item in items if item.id in self._row_of])
        for item, line, vector in zip(items, lines, vectors, strict=True):
            self._row_of[item.id] = -1
            self._pending.append((item, line, vector))

    def remove(self, ids: Iterable[str]) -> None:
        """Drop items, effective with :meth:`commit`.

        Raises:
            KeyError: the index does not hold an id.
        """
        self._require_lock()
        for name in ids:
            row = self._row_of.pop(name)
            if row < 0:
                self._pending = [entry for entry in self._pending if entry[0].id != name]
            else:
                self._rows[row] = None
                self._pending_removed.add(name)

    def commit(self) -> None:
        """Save what was added and removed; a crash later loses none of it. Cheap: only new vectors are written."""
        if not self._pending and not self._pending_removed:
            return
        self._require_lock()
        vectors = np.empty((len(self._pending), self.dim), dtype=np.float32)
        for row, (_, _, vector) in enumerate(self._pending):
            vectors[row] = vector
        lines = [line for _, line, _ in self._pending]
        self._folder.append(lines, vectors, sorted(self._pending_removed), len(self), not self._pending_removed)
        for item, _, _ in self._pending:
            self._row_of[item.id] = len(self._rows)
            self._rows.append(item)
        self._segments.append(vectors)
        self._pending, self._pending_removed = [], set()
        self._faiss = None

    def build(self) -> None:
        """Commit, merge the segments into one, and train and save the FAISS index if it is not exact.

        Only added vectors are put into an index trained before; after a removal or change it is trained anew.

        Raises:
            UserError: too few vectors to train ``factory``. The vectors are saved all the same.
        """
        self.commit()
        if len(self._segments) > 1 or None in self._rows or self._restamped:
            self._merge()
        self._faiss = self._current_faiss()
        pointer = self._folder.pointer
        if self.factory != "Flat" and len(self) and (pointer["faiss"] or {}).get("rows") != len(self):
            self._folder.write_faiss(self._faiss)

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The k items with the largest inner product, best first; fewer if the index holds fewer.

        Args:
            queries: float32 [Q, D].
            k: at least 1.

        Raises:
            ValueError: shapes do not fit.
        """
        scores, rows = self.search_rows(queries, k)
        items = self._items_by_row
        return [
            [Hit(float(score), items[row]) for score, row in zip(*pair, strict=True) if row >= 0]
            for pair in zip(scores, rows, strict=True)
        ]

    def search_rows(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`search`: float32 scores [Q, k] and int64 rows of :attr:`items` [Q, k], padded with -inf and -1."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim or k < 1:
            raise ValueError(f"queries have shape {queries.shape} and k is {k}, expected [Q, {self.dim}] and at least 1")
        index = self._searchable()
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        found = min(k, index.ntotal)
        if found and len(queries):
            scores[:, :found], rows[:, :found] = index.search(queries, found)
            scores[rows < 0] = -np.inf
        return scores, rows
