"""The files of an index: immutable segments named by one small pointer file.

``index.json`` names everything that counts. New data goes to new files first, then ``index.json`` is replaced in one
step, then files it no longer names are deleted. A process killed at any moment leaves the old index or the new one.

    index.json     format, model, dim, factory, count, the segments in order, and the FAISS file
    000003.npy     float32 [rows, D], the vectors of segment 3
    000003.jsonl   first {"removed": id} of earlier items that no longer count, then its items in the order of rows
    000004.faiss   a trained FAISS index over the first rows (not for "Flat", where the vectors are the index)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vlkit.errors import UserError
from vlkit.files import read_json, whole_file, write_json, write_text

FORMAT, FORMAT_VERSION = "vlkit-index", 1
POINTER = "index.json"
EXACT = "Flat"
_OWN_FILES = re.compile(r"\d{6}\.(npy|jsonl|faiss)|\.(\d{6}\.\w+|index\.json)\..*\.part")


@dataclass(frozen=True)
class Item:
    """What a vector stands for.

    Attributes:
        id: unique name, e.g. the path of an image inside its folder.
        stamp: cheap state of the source, e.g. size and modification time; equal stamps mean "unchanged".
        digest: hash of the content, or "". Asked when the stamp differs: a touched or copied file is still unchanged.
        metadata: anything JSON can hold, given back with search results.
    """

    id: str
    stamp: str = ""
    digest: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON; raises TypeError or ValueError if the metadata cannot be written."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


class IndexFolder:
    """Reads and writes the files of one index; ``pointer`` is the parsed ``index.json``."""

    def __init__(self, path: Path, pointer: dict[str, Any]):
        self.path = path
        self.pointer = pointer

    @classmethod
    def create(cls, path: Path, model_id: str, dim: int, factory: str) -> IndexFolder:
        """Write an empty index."""
        pointer = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": model_id, "dim": dim}
        pointer |= {"factory": factory, "count": 0, "serial": 0, "segments": [], "faiss": None}
        write_json(path / POINTER, pointer)
        return cls(path, pointer)

    @classmethod
    def read(cls, path: Path, model_id: str | None = None) -> IndexFolder:
        """Read the pointer file.

        Raises:
            UserError: there is no index, one of another format, or one that another model than ``model_id`` made.
        """
        file = path / POINTER
        if not file.is_file():
            raise UserError(f"{path}: no index here ({POINTER} is missing); make one with tasks/retrieval/index.py")
        pointer = read_json(file)
        if not isinstance(pointer, dict) or pointer.get("format") != FORMAT:
            raise UserError(f"{file}: not a vlkit index; is this the right folder?")
        if pointer.get("format_version") != FORMAT_VERSION:
            version = pointer.get("format_version")
            raise UserError(f"{file}: format version {version}, expected {FORMAT_VERSION}; make the index again")
        if model_id is not None and pointer["model"] != model_id:
            raise UserError(
                f"{path}: index made with {pointer['model']}, not with {model_id}; their vectors do not compare: "
                "use that model, or another index folder"
            )
        return cls(path, pointer)

    def load(self) -> tuple[list[Item | None], list[np.ndarray]]:
        """All rows in order, None for those that no longer count, and the vectors of each segment (memory maps).

        Raises:
            UserError: a file is damaged.
            FileNotFoundError: a file is missing (damaged, or a writer has just replaced it).
        """
        rows: list[Item | None] = []
        row_of: dict[str, int] = {}
        segments = []
        for segment in self.pointer["segments"]:
            removed, added = self._read_items(segment["name"])
            if len(added) != segment["rows"] or not row_of.keys() >= set(removed):
                raise self._damaged(f"{segment['name']}.jsonl")
            for name in removed:
                rows[row_of.pop(name)] = None
            row_of |= {item.id: row for row, item in enumerate(added, len(rows))}
            rows += added
            segments.append(self.load_vectors(segment))
        return rows, segments

    def load_vectors(self, segment: dict[str, Any]) -> np.ndarray:
        """A segment's vectors, a read-only memory map."""
        name = f"{segment['name']}.npy"
        try:
            vectors = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise self._damaged(name) from None
        if vectors.shape != (segment["rows"], self.pointer["dim"]):
            raise self._damaged(name)
        return vectors

    def append(self, lines: list[str], vectors: np.ndarray, removed: Iterable[str], count: int) -> None:
        """Add a segment of items after dropping the earlier ones whose ids are ``removed``; ``count`` then remain."""
        drops = [json.dumps({"removed": name}, ensure_ascii=False) for name in removed]
        segment = self._write_segment(drops + lines, vectors)
        # The rows of a FAISS index stay what they are only as long as none is dropped.
        current = None if drops else self.pointer["faiss"]
        self._switch(segments=[*self.pointer["segments"], segment], count=count, faiss=current)

    def merge(self, lines: list[str], vectors: np.ndarray) -> None:
        """Put one segment of all living rows, in their order, in the place of all segments."""
        segments = [self._write_segment(lines, vectors)] if lines else []
        self._switch(segments=segments, count=len(lines))

    def set_factory(self, factory: str) -> None:
        """Switch to another kind of FAISS index; the vectors stay."""
        self._switch(factory=factory, faiss=None)

    def write_faiss(self, index: faiss.Index, trained_on: int) -> None:
        """Keep a FAISS index over the first rows, trained when there were ``trained_on``."""
        name = self._next_name()
        with whole_file(self.path / f"{name}.faiss") as temporary:
            faiss.write_index(index, str(temporary))
        self._switch(faiss={"name": name, "rows": index.ntotal, "trained_on": trained_on})

    def read_faiss(self) -> faiss.Index | None:
        """The FAISS index as last written, over the first ``ntotal`` rows; None if there is none that still counts.

        Raises:
            UserError, FileNotFoundError: as :meth:`load`.
        """
        if self.pointer["faiss"] is None:
            return None
        name = f"{self.pointer['faiss']['name']}.faiss"
        try:
            index = faiss.read_index(str(self.path / name))
        except RuntimeError:
            if not (self.path / name).exists():
                raise FileNotFoundError(2, "missing", str(self.path / name)) from None
            raise self._damaged(name) from None
        if index.ntotal != self.pointer["faiss"]["rows"] or index.d != self.pointer["dim"]:
            raise self._damaged(name)
        return index

    def delete_unused(self) -> None:
        """Delete what the pointer does not name: files of an interrupted run, and those just replaced."""
        names = [segment["name"] for segment in self.pointer["segments"]]
        used = {f"{name}{suffix}" for name in names for suffix in (".npy", ".jsonl")}
        if self.pointer["faiss"]:
            used.add(f"{self.pointer['faiss']['name']}.faiss")
        for path in self.path.iterdir():
            if _OWN_FILES.fullmatch(path.name) and path.name not in used:
                path.unlink(missing_ok=True)

    def _write_segment(self, lines: list[str], vectors: np.ndarray) -> dict[str, Any]:
        name = self._next_name()
        with whole_file(self.path / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.ascontiguousarray(vectors, dtype=np.float32), allow_pickle=False)
        write_text(self.path / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        return {"name": name, "rows": len(vectors)}

    def _switch(self, **changes: Any) -> None:
        """The one step that makes new files count; what they replace is deleted only afterwards."""
        pointer = self.pointer | changes
        write_json(self.path / POINTER, pointer)
        self.pointer = pointer
        self.delete_unused()

    def _next_name(self) -> str:
        self.pointer = self.pointer | {"serial": self.pointer["serial"] + 1}
        return f"{self.pointer['serial']:06d}"

    def _read_items(self, name: str) -> tuple[list[str], list[Item]]:
        """The ids that a segment removes, and its items."""
        try:
            # Split at newlines only: JSON leaves other line separators as they are.
            text = (self.path / f"{name}.jsonl").read_text(encoding="utf-8")
            records = [json.loads(line) for line in text.split("\n")[:-1]]
            removed = [record["removed"] for record in records if "removed" in record]
            return removed, [Item(**record) for record in records if "removed" not in record]
        except (TypeError, ValueError):
            raise self._damaged(f"{name}.jsonl") from None

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.path / name}: not what {POINTER} says; the index is damaged, make it again")


def living(rows: list[Item | None], segments: list[np.ndarray], dim: int) -> tuple[list[Item], np.ndarray]:
    """Items that count and their vectors, float32 [n, D]; a memory map where nothing has to be copied."""
    alive = np.array([item is not None for item in rows], dtype=bool)
    items = [item for item in rows if item is not None]
    if len(segments) == 1 and alive.all():
        return items, segments[0]
    kept, start = [np.empty((0, dim), dtype=np.float32)], 0
    for segment in segments:
        kept.append(segment[alive[start : start + len(segment)]])
        start += len(segment)
    return items, np.concatenate(kept)
