"""A folder of embeddings: one part per shard, two files each.

    embeddings.json              the model that made the vectors, and their width
    part-<shard>.npy             float16 [n, E], unit norm
    part-<shard>.parquet         a row per image file: id, row (of the .npy), width, height, bytes, sha256, error

An image that could not be read has an ``error`` and no ``row``. The parquet file is renamed into place last, so a part
that has one is whole. It holds the shard's stamp: a shard that has changed since is embedded again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.data.shards import SLICE_NAME, Shard
from vlkit.errors import UserError
from vlkit.extract.identity import model_key
from vlkit.files import read_json, whole_file, write_json

FORMAT, FORMAT_VERSION = "vlkit-embeddings", 1
ABOUT = "embeddings.json"
_STAMP = b"vlkit.stamp"
_LEFTOVER_SECONDS = 3600.0  # an unfinished file of this age belongs to a dead process


@dataclass(frozen=True)
class Row:
    """What is known of an image file.

    Attributes:
        id: its name (:class:`vlkit.data.shards.Entry`).
        width, height: pixels, upright; 0 if it could not be read.
        bytes: size of the file.
        sha256: hex hash of the file.
        error: the reason why it has no vector; "" if it has one.
    """

    id: str
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""
    error: str = ""


@dataclass(frozen=True)
class Part:
    """A part read back.

    Attributes:
        name: the shard's name.
        vectors: float16 [n, E], a read-only memory map.
        table: the ``pyarrow.Table`` of its rows.
    """

    name: str
    vectors: np.ndarray
    table: Any

    def ids(self) -> list[str]:
        """The ids of the vectors, in their order."""
        return self.table.filter(self.table["row"].is_valid())["id"].to_pylist()


class Parts:
    """The parts in a folder. Any number of processes may write different parts of it.

    Attributes:
        path: the folder.
        about: the content of ``embeddings.json``: ``model_id``, ``dim``, and ``source`` as given to :meth:`open`.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Use :meth:`open` or :meth:`read`."""
        self.path, self.about = path, about

    @classmethod
    def open(cls, path: str | Path, model_id: str, dim: int, source: dict[str, str | None] | None = None) -> Parts:
        """Open a folder to write parts; it is created if it is missing.

        Args:
            path: the folder.
            model_id: everything that determines the vectors.
            dim: E.
            source: further values to note: the model's folder, the base, the folder of images.

        Raises:
            UserError: the folder holds embeddings of another model.
        """
        path = Path(path)
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "model_id": model_id, "dim": dim}
        about["source"] = source or {}
        if (path / ABOUT).exists():
            found = cls.read(path)
            if (model_key(found.about["model_id"]), found.about["dim"]) != (model_key(model_id), dim):
                raise UserError(
                    f"{path}: holds embeddings of {found.about['model_id']}, not of {model_id}; use another folder"
                )
            return found
        write_json(path / ABOUT, about)
        return cls(path, about)

    @classmethod
    def read(cls, path: str | Path) -> Parts:
        """Open a folder to read its parts.

        Raises:
            UserError: no embeddings are there.
        """
        file = Path(path) / ABOUT
        if not file.is_file():
            raise UserError(f"{path}: no embeddings here ({ABOUT} is missing); make them with tasks/retrieval/embed.py")
        about = read_json(file)
        known = isinstance(about, dict) and (about.get("format"), about.get("format_version"))
        if known != (FORMAT, FORMAT_VERSION):
            raise UserError(f"{file}: is not of {FORMAT} version {FORMAT_VERSION}; make the embeddings again")
        if not isinstance(about.get("model_id"), str) or not isinstance(about.get("dim"), int):
            raise UserError(f"{file}: names no model or width; make the embeddings again")
        return cls(Path(path), about)

    def names(self) -> list[str]:
        """The names of the whole parts, sorted."""
        return sorted(file.name[len("part-") : -len(".parquet")] for file in self.path.glob("part-*.parquet"))

    def forget_slices(self, shards: Sequence[Shard], source: dict[str, str | None]) -> None:
        """Delete the parts of slices that a folder no longer has, and note ``source``, where the folder is now.

        Args:
            shards: all slices of the folder.
            source: as given to :meth:`open`.
        """
        kept = {shard.name for shard in shards}
        for name in self.names():
            if SLICE_NAME.fullmatch(name) and name not in kept:
                for file in reversed(self._files(name)):  # the rows first: a part is whole if it has them
                    file.unlink(missing_ok=True)
        if self.about["source"] != source:
            self.about = {**self.about, "source": source}
            write_json(self.path / ABOUT, self.about)

    def stamp(self, name: str) -> str:
        """The stamp of the shard that a part was made of; "" if the part is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return ((pq.read_schema(self._files(name)[1]).metadata or {}).get(_STAMP) or b"").decode()
        except (pa.ArrowException, OSError, ValueError):
            return ""

    def state(self, name: str) -> str:
        """Size and modification time of a part's rows; "" if they are missing. Equal states mean an equal stamp."""
        try:
            found = os.stat(self._files(name)[1])
        except OSError:
            return ""
        return f"{found.st_size}-{found.st_mtime_ns}"

    def holds(self, shard: Shard) -> bool:
        """Whether the part of a shard is whole and the shard unchanged."""
        try:
            np.load(self._files(shard.name)[0], mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # missing, or damaged by the disk
            return False
        return self.stamp(shard.name) == shard.stamp()

    def write(self, shard: Shard, rows: Sequence[Row], vectors: np.ndarray) -> None:
        """Write the part of a shard.

        Args:
            shard: the shard.
            rows: one per image file, in the shard's order.
            vectors: [n, E], those of the rows without an error.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        good = np.array([not row.error for row in rows], dtype=bool)
        if len(vectors) != good.sum():
            raise ValueError(f"{len(vectors)} vectors for {good.sum()} images")
        places = np.cumsum(good) - 1
        columns = {
            "id": pa.array([row.id for row in rows], pa.string()),
            "row": pa.array(places, pa.int32(), mask=~good),
            "width": pa.array([row.width for row in rows], pa.int32()),
            "height": pa.array([row.height for row in rows], pa.int32()),
            "bytes": pa.array([row.bytes for row in rows], pa.int64()),
            "sha256": pa.array([row.sha256 for row in rows], pa.string()),
            "error": pa.array([row.error or None for row in rows], pa.string()),
        }
        table = pa.table(columns).replace_schema_metadata({_STAMP: shard.stamp().encode()})
        to_vectors, to_rows = self._files(shard.name)
        self._remove_leftovers(shard.name)
        to_rows.unlink(missing_ok=True)  # of the shard as it was: it does not match the new vectors
        with whole_file(to_vectors) as temporary, open(temporary, "wb") as file:
            np.save(file, vectors.astype(np.float16), allow_pickle=False)
        with whole_file(to_rows) as temporary:
            pq.write_table(table, temporary)

    def part(self, name: str) -> Part:
        """Read a part.

        Raises:
            UserError: it is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        to_vectors, to_rows = self._files(name)
        try:
            table = pq.read_table(to_rows)
            vectors = np.load(to_vectors, mmap_mode="r", allow_pickle=False)
            fits = vectors.shape == (len(table) - table["row"].null_count, self.about["dim"])
        except (pa.ArrowException, OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{to_rows}: cannot be read ({error}); delete the part and embed it again") from None
        if not fits:
            raise UserError(f"{to_vectors}: does not match {to_rows.name}; delete the part and embed it again")
        return Part(name, vectors, table)

    def vectors(self, name: str) -> np.ndarray:
        """float16 [n, E], the memory map of a part's vectors, without its rows.

        Raises:
            UserError: it is damaged or missing.
        """
        file = self._files(name)[0]
        try:
            vectors = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file}: cannot be read ({error}); embed this part again") from None
        if vectors.ndim != 2 or vectors.shape[1] != self.about["dim"] or vectors.dtype != np.float16:
            raise UserError(f"{file}: is no float16 array of width {self.about['dim']}; embed this part again")
        return vectors

    def __iter__(self) -> Iterator[Part]:
        """The whole parts, by name."""
        return map(self.part, self.names())

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.path / f"part-{name}.npy", self.path / f"part-{name}.parquet"

    def _remove_leftovers(self, name: str) -> None:
        """Delete what killed processes left unfinished; a file that is being written is younger."""
        for file in self.path.glob(f".part-{name}.*.part"):
            try:
                if time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                    file.unlink()
            except FileNotFoundError:
                continue
