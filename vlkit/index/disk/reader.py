"""Searching an index on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vlkit.errors import UserError
from vlkit.extract import Parts
from vlkit.extract.identity import model_key
from vlkit.files import read_json
from vlkit.index.disk.breadth import FACTORS, Breadth, search_lists
from vlkit.index.disk.matrix import PartsMatrix
from vlkit.index.files import DISK_POINTER, EXACT, Item
from vlkit.index.reader import Hit, VectorIndex

FORMAT, FORMAT_VERSION = "vlkit-disk-index", 1
POINTER = DISK_POINTER


def _changed(parts: Parts, pointer: dict[str, Any]) -> bool:
    """Whether parts were written anew from other images since the index was made; further parts do not matter."""
    stamps, states = pointer.get("stamps", {}), pointer.get("states", {})
    return any(parts.state(name) != states[name] and parts.stamp(name) != stamp for name, stamp in stamps.items())


class DiskIndex:
    """An index over the parts of ``vlkit embed``; any number of threads may search it.

    Attributes:
        model_id: the model that made the vectors.
        factory: "Flat" is exact.
    """

    def __init__(self, path: Path, pointer: dict[str, Any]) -> None:
        """Use :meth:`open`."""
        import pyarrow as pa

        self.model_id: str = pointer["model"]
        self.factory: str = pointer["factory"]
        self._breadth = Breadth(pointer["nprobe"], pointer.get("refined", FACTORS[0]))
        parts = Parts.read(pointer["embeddings"])
        self._matrix = PartsMatrix(parts, pointer["parts"])
        name = pointer["name"]
        self._items: Any = pa.ipc.open_file(pa.memory_map(str(path / f"items-{name}.arrow"))).read_all()
        if not len(self._items) == len(self._matrix) == pointer["count"] or _changed(parts, pointer):
            raise UserError(f"{path}: the embeddings in {parts.path} have changed; run index.py --embeddings again")
        self._faiss: faiss.Index | None = None
        if self.factory != EXACT:
            # Finds the lists of an index that was moved; FAISS prints a line then.
            moved = pointer["made_in"] != str(path.absolute())
            flags = faiss.IO_FLAG_READ_ONLY | (faiss.IO_FLAG_ONDISK_SAME_DIR if moved else 0)
            self._faiss = faiss.read_index(str(path / f"ivf-{name}.index"), flags)

    @classmethod
    def open(cls, path: str | Path, model_id: str | None = None) -> DiskIndex:
        """Open an index to search it; see :meth:`vlkit.index.VectorIndex.open`.

        Raises:
            UserError: there is none, it is damaged, its embeddings have moved or changed, or another model made it.
        """
        file = Path(path) / POINTER
        if not file.is_file():
            raise UserError(f"{path}: no index here ({POINTER} is missing); make one with index.py --embeddings")
        pointer = read_json(file)
        known = isinstance(pointer, dict) and (pointer.get("format"), pointer.get("format_version"))
        if known != (FORMAT, FORMAT_VERSION):
            raise UserError(f"{file}: is not of {FORMAT} version {FORMAT_VERSION}; make the index again")
        if model_id is not None and model_key(pointer["model"]) != model_key(model_id):
            raise UserError(
                f"{path}: index made with {pointer['model']}, not with {model_id}; their vectors are not comparable: "
                "use that model, or another index folder"
            )
        try:
            return cls(Path(path), pointer)
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read ({reason}); run index.py --embeddings again") from None

    def __len__(self) -> int:
        return len(self._matrix)

    @property
    def dim(self) -> int:
        """D, the width of vectors and queries."""
        return self._matrix.dim

    def search(self, queries: np.ndarray, k: int, min_score: float | None = None) -> list[list[Hit]]:
        """The k items with the largest inner product for each query, best first; fewer if the index holds fewer.

        Args:
            queries: float32 [Q, D].
            k: at least 1.
            min_score: items with a smaller inner product are dropped.

        Raises:
            ValueError: shapes do not fit.
        """
        scores, rows = self.search_rows(queries, k)
        return [
            [
                Hit(float(score), self.item(int(row)))
                for score, row in zip(*pair, strict=True)
                if row >= 0 and (min_score is None or score >= min_score)
            ]
            for pair in zip(scores, rows, strict=True)
        ]

    def search_rows(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`search`: float32 scores [Q, k] and int64 rows [Q, k], padded with -inf and -1."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim or k < 1:
            raise ValueError(f"queries have shape {queries.shape} and k is {k}, expected [Q, {self.dim}] and >= 1")
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        found = min(k, len(self))
        if not len(queries):
            return scores, rows
        if self._faiss is None:
            scores[:, :found], rows[:, :found] = self._matrix.nearest(queries, found)
        else:
            scores[:, :found], rows[:, :found] = search_lists(self._faiss, self._matrix, queries, found, self._breadth)
        return scores, rows

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, D], the vectors of some rows, int64 [n]."""
        return self._matrix.take(rows)

    def item(self, row: int) -> Item:
        """What a row represents: its id, and size and hash of its image as metadata."""
        values = {name: self._items[name][row].as_py() for name in self._items.column_names}
        return Item(values.pop("id"), digest=values.pop("sha256"), metadata=values)


def open_index(path: str | Path, model_id: str | None = None) -> DiskIndex | VectorIndex:
    """Open an index of either kind.

    Raises:
        UserError: as :meth:`DiskIndex.open` and :meth:`vlkit.index.VectorIndex.open`.
    """
    on_disk = (Path(path) / POINTER).is_file()
    return DiskIndex.open(path, model_id) if on_disk else VectorIndex.open(path, model_id)
