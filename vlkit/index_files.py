"""The files of a vector index: immutable segments named by one small pointer file.

``index.json`` names everything that counts. New data goes to new files first, then ``index.json`` is replaced in one
step, then files it no longer names are deleted. A process killed at any moment leaves the old index or the new one.

    index.json     format, model, dim, factory, count, the segments in order, and the FAISS file if it is current
    000003.npy     float32 [rows, dim], the vectors of segment 3
    000003.jsonl   its items, one a line in the order of rows, and lines {"removed": id} for items dropped before them
    000004.faiss   a trained FAISS index over all rows (not for "Flat", where the vectors are the index)
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
    def create(cls, path: Path, model: str, dim: int, factory: str) -> IndexFolder:
        """Write an empty index."""
        pointer = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": model,
            "dim": dim,
            "factory": factory,
            "count": 0,
            "serial": 0,
            "segments": [],
            "faiss": None,
        }
        write_json(path / POINTER, pointer)
        return cls(path, pointer)

    @classmethod
    def read(cls, path: Path) -> IndexFolder:
        """Read the pointer file.

        Raises:
            UserError: there is no index, or one of another format.
        """
        if not (path / POINTER).is_file():
            raise UserError(f"{path}: no index here ({POINTER} is missing); make one with tasks/retrieval/index.py")
        pointer = read_json(path / POINTER)
        if not isinstance(pointer, dict) or pointer.get("format") != FORMAT:
            raise UserError(f"{path / POINTER}: not a vlkit index; is this the right folder?")
        if pointer.get("format_version") != FORMAT_VERSION:
            version = pointer.get("format_version")
            raise UserError(f"{path / POINTER}: format version {version}, expected {FORMAT_VERSION}; make the index again")
        return cls(path, pointer)

    def load(self) -> tuple[list[Item | None], list[np.ndarray]]:
        """All rows in order, None for rows that were replaced or removed later, and the segments' vectors."""
        rows: list[Item | None] = []
        row_of: dict[str, int] = {}
        vectors = []
        for segment in self.pointer["segments"]:
            name, start = segment["name"], len(rows)
            for record in self._records(name):
                identifier = record.get("removed", record.get("id"))
                if identifier in row_of:
                    rows[row_of.pop(identifier)] = None
                if "removed" not in record:
                    row_of[identifier] = len(rows)
                    rows.append(Item(**record))
            vectors.append(self._vectors(name))
            expected = (segment["rows"], self.pointer["dim"])
            if vectors[-1].shape != expected or len(rows) - start != expected[0]:
                got = f"{len(rows) - start} items and vectors {vectors[-1].shape}"
                raise UserError(f"{self.path / name}: holds {got}, expected {expected}; the index is damaged, make it again")
        return rows, vectors

    def append(self, lines: list[str], vectors: np.ndarray, removed: Iterable[str], count: int, keep_faiss: bool) -> None:
        """Add a segment: items that replace earlier ones are listed in ``removed`` too."""
        segment = self._write_segment([json.dumps({"removed": name}) for name in removed] + lines, vectors)
        current = self.pointer["faiss"] if keep_faiss else None
        self._switch(segments=[*self.pointer["segments"], segment], count=count, faiss=current)

    def replace(self, lines: list[str], vectors: np.ndarray) -> None:
        """Put one segment in the place of all; the FAISS file, if any, no longer counts."""
        segments = [self._write_segment(lines, vectors)] if lines else []
        self._switch(segments=segments, count=len(lines), faiss=None)

    def set_factory(self, factory: str) -> None:
        """Switch to another kind of FAISS index; the vectors stay."""
        self._switch(factory=factory, faiss=None)

    def write_faiss(self, index: faiss.Index) -> None:
        """Keep a trained FAISS index over all rows."""
        name = self._next_name()
        with whole_file(self.path / f"{name}.faiss") as temporary:
            faiss.write_index(index, str(temporary))
        self._switch(faiss={"name": name, "rows": index.ntotal})

    def read_faiss(self) -> faiss.Index | None:
        """The FAISS index as it was last written, None if there is none or it no longer counts."""
        if self.pointer["faiss"] is None:
            return None
        path = self.path / f"{self.pointer['faiss']['name']}.faiss"
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            if not path.exists():
                raise FileNotFoundError(path) from None
            raise UserError(f"{path}: FAISS cannot read it; the index is damaged, make it again") from error
        if index.ntotal != self.pointer["faiss"]["rows"] or index.d != self.pointer["dim"]:
            raise UserError(f"{path}: holds {index.ntotal} vectors of width {index.d}; the index is damaged, make it again")
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

    def _records(self, name: str) -> list[dict[str, Any]]:
        path = self.path / f"{name}.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            raise UserError(f"{path}: not JSON lines; the index is damaged, make it again") from None

    def _vectors(self, name: str) -> np.ndarray:
        path = self.path / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise UserError(f"{path}: not a vector file; the index is damaged, make it again") from None
