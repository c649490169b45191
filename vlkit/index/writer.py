"""Create an index and bring it up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import filelock
import numpy as np

from vlkit.data.images import MediaError
from vlkit.errors import UserError, some
from vlkit.index.approximate import new_index, trained_index
from vlkit.index.files import DISK_POINTER, EXACT, POINTER, IndexFolder, Item, living


@dataclass(frozen=True)
class Plan:
    """The changes that bring an index up to date.

    Attributes:
        new: items the index does not hold.
        changed: items whose source changed since they were added.
        unchanged: number of items that can be skipped.
        removed: ids the index holds and the wanted items lack.
    """

    new: list[Item]
    changed: list[Item]
    unchanged: int
    removed: list[str]

    @property
    def todo(self) -> list[Item]:
        """Items to embed and add."""
        return self.new + self.changed


class IndexWriter:
    """An index opened for changes, by one process at a time; a context manager.

    Added items are saved every ``commit_every``; leaving the context builds the index, and after an error or Ctrl-C
    saves what was added, so that the next run goes on from there.
    """

    def __init__(self, folder: IndexFolder, lock: filelock.BaseFileLock, commit_every: int):
        """Use :meth:`open`."""
        self._folder = folder
        self._lock = lock
        self._commit_every = commit_every
        self._rows, self._segments = folder.load()
        self._row_of = {item.id: row for row, item in enumerate(self._rows) if item is not None}
        self._restamped = False
        # Not saved yet: items with their line and vector by id, and saved items that no longer count.
        self._added: dict[str, tuple[Item, str, np.ndarray]] = {}
        self._dropped: list[str] = []

    @classmethod
    def open(
        cls, path: str | Path, dim: int, model_id: str, factory: str | None = None, commit_every: int = 500
    ) -> IndexWriter:
        """Open an index for changes; an empty one is created if there is none.

        Args:
            path: its folder.
            dim: D.
            model_id: everything that determines the vectors (base, adapter, fingerprint), readable, because messages
                show it.
            factory: FAISS factory string, e.g. "Flat" (exact), "HNSW32", "IVF256,Flat", "IVF1024,PQ32". None keeps the
                index's own, "Flat" for a new one. A different one is built from the saved vectors.
            commit_every: number of added items after which they are saved.

        Raises:
            UserError: another model made the index, ``factory`` is not understood, the folder holds an index on disk,
                or another process writes.
        """
        path = Path(path)
        if factory is not None:
            new_index(dim, factory)
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{path}: another process is writing this index; wait until it has finished") from None
        try:
            if (path / DISK_POINTER).exists():
                raise UserError(f"{path}: holds an index on disk (of embeddings); use another folder")
            if not (path / POINTER).exists():
                IndexFolder.create(path, model_id, dim, factory or EXACT)
            folder = IndexFolder.read(path, model_id)
            width = folder.pointer["dim"]
            if width != dim:
                raise UserError(f"{path}: holds vectors of width {width}, not {dim}; use another folder")
            writer = cls(folder, lock, commit_every)
            if factory is not None and factory != folder.pointer["factory"]:
                folder.set_factory(factory)
            folder.delete_unused()
            return writer
        except FileNotFoundError as error:
            lock.release()
            raise UserError(f"{error.filename}: no such file; the index is damaged, make it again") from None
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.build()
            else:
                self.commit()
        finally:
            self._lock.release()

    def __len__(self) -> int:
        """Number of items, those not saved yet included."""
        return len(self._row_of) + len(self._added)

    @property
    def items(self) -> list[Item]:
        """The saved items that count."""
        return [item for item in self._rows if item is not None]

    def vectors(self, items: Sequence[Item]) -> np.ndarray:
        """The vectors of saved items, float32 [n, D]."""
        starts = np.cumsum([0, *(len(segment) for segment in self._segments)])
        found = np.empty((len(items), self._folder.pointer["dim"]), dtype=np.float32)
        for place, item in enumerate(items):
            row = self._row_of[item.id]
            segment = int(np.searchsorted(starts, row, "right")) - 1
            found[place] = self._segments[segment][row - starts[segment]]
        return found

    def diff(self, items: Iterable[Item], digest: Callable[[Item], str] | None = None) -> Plan:
        """Compare the wanted items with the saved ones.

        Args:
            items: everything the index should hold, ``stamp`` filled in.
            digest: computes an item's content hash; called only where the stamp differs and the index knows a hash.
                Equal hashes make the item unchanged, and its new stamp is remembered.

        Raises:
            UserError: an id occurs twice.
        """
        new, changed, unchanged, seen = [], [], 0, set()
        for item in items:
            if item.id in seen:
                raise UserError(f"items: {item.id} occurs twice; every id must be different")
            seen.add(item.id)
            row = self._row_of.get(item.id)
            if row is None:
                new.append(item)
            elif cast(Item, self._rows[row]).stamp == item.stamp or self._same_content(row, item, digest):
                unchanged += 1
            else:
                changed.append(item)
        return Plan(new, changed, unchanged, [name for name in self._row_of if name not in seen])

    def add(self, items: Sequence[Item], vectors: np.ndarray) -> None:
        """Add items; they replace those with the same id.

        Args:
            items: n items with different ids.
            vectors: float32 [n, D], finite.

        Raises:
            UserError: a vector is not finite, or an id occurs twice.
            ValueError: shapes do not fit.
        """
        vectors = np.array(vectors, dtype=np.float32)
        if vectors.shape != (len(items), self._folder.pointer["dim"]):
            expected = (len(items), self._folder.pointer["dim"])
            raise ValueError(f"vectors have shape {vectors.shape}, expected {expected}")
        broken = [
            item.id for item, finite in zip(items, np.all(np.isfinite(vectors), axis=1), strict=True) if not finite
        ]
        if broken:
            raise UserError(f"{len(broken)} vectors are not finite ({some(broken)}); the model's output is broken")
        if len({item.id for item in items}) < len(items):
            raise UserError("items: an id occurs twice; every id must be different")
        lines = [item.to_line() for item in items]
        for item, line, vector in zip(items, lines, vectors, strict=True):
            self._drop(item.id)
            self._added[item.id] = (item, line, vector)
        if len(self._added) >= self._commit_every:
            self.commit()

    def remove(self, ids: Iterable[str]) -> None:
        """Drop items; ids the index does not hold are ignored."""
        for name in ids:
            self._drop(name)

    def commit(self) -> None:
        """Save added and dropped items atomically. Writes only the new vectors."""
        if not self._added and not self._dropped:
            return
        items, lines, vectors = zip(*self._added.values(), strict=True) if self._added else ((), (), ())
        block = np.array(vectors, dtype=np.float32).reshape(-1, self._folder.pointer["dim"])
        self._folder.append(list(lines), block, self._dropped, count=len(self))
        for item in items:
            self._row_of[item.id] = len(self._rows)
            self._rows.append(item)
        self._segments.append(self._folder.load_vectors(self._folder.pointer["segments"][-1]))
        self._added, self._dropped = {}, []

    def build(self) -> None:
        """Save everything, merge the segments into one, and train and save the FAISS index unless it is exact.

        An index trained earlier only gets the added vectors, unless items were dropped or their number doubled.

        Raises:
            UserError: too few vectors to train the index. The vectors are saved all the same.
        """
        self.commit()
        items, vectors = living(self._rows, self._segments, self._folder.pointer["dim"])
        if len(self._segments) > 1 or len(items) < len(self._rows) or self._restamped:
            self._folder.merge([item.to_line() for item in items], vectors)
            self._rows, self._segments = self._folder.load()
            self._row_of = {item.id: row for row, item in enumerate(items)}
            self._restamped = False
        if self._folder.pointer["factory"] != EXACT and len(items):
            self._build_faiss(vectors)

    def _build_faiss(self, vectors: np.ndarray) -> None:
        saved = self._folder.pointer["faiss"]
        if saved is None or len(vectors) > 2 * saved["trained_on"]:
            index = trained_index(vectors, self._folder.pointer["factory"])
            self._folder.write_faiss(index, trained_on=len(vectors))
        elif saved["rows"] < len(vectors):
            index = self._folder.read_faiss()
            assert index is not None  # the pointer names one
            index.add(np.ascontiguousarray(vectors[index.ntotal :]))
            self._folder.write_faiss(index, saved["trained_on"])

    def _drop(self, name: str) -> None:
        self._added.pop(name, None)
        row = self._row_of.pop(name, None)
        if row is not None:
            self._rows[row] = None
            self._dropped.append(name)

    def _same_content(self, row: int, item: Item, digest: Callable[[Item], str] | None) -> bool:
        known = cast(Item, self._rows[row])  # its id is in _row_of
        if digest is None or not known.digest:
            return False
        try:
            if digest(item) != known.digest:
                return False
        except MediaError:  # whoever reads it next says why
            return False
        self._rows[row] = replace(known, stamp=item.stamp)
        self._restamped = True
        return True
