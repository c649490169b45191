"""The files of an index: immutable segments named by one small pointer file.

``index.json`` names everything that counts. New data goes to new files first, then ``index.json`` is replaced in one
step, then files it no longer names are deleted. A process killed at any moment leaves the old index or the new one.

    index.json     format, model, dim, factory, count, the segments in order, and the FAISS file
    000003.npy     float32 [rows, D], the vectors of segment 3
    000003.jsonl   first {"removed": id} of earlier items that no longer count, then its items in the order of rows
    000004.faiss   a trained FAISS index over the first rows (not for "Flat", where the vectors are the index); its
                   hash is in index.json
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from vlkit.errors import UserError
from vlkit.extract.identity import model_key
from vlkit.files import read_json, sha256_of, whole_file, write_json, write_text

FORMAT, FORMAT_VERSION = "vlkit-index", 1
POINTER = "index.json"
DISK_POINTER = "disk.json"
"""The pointer of an index on disk (:mod:`vlkit.index.disk`), which cannot share a folder with this one."""
EXACT = "Flat"
_faiss_limits = threading.Lock()  # FAISS has them once for the whole process
_OWN_FILES = re.compile(r"\d{6}\.(npy|jsonl|faiss)|\.(\d{6}\.\w+|index\.json)\..*\.part")


_SEGMENT_NAME = re.compile(r"\d{6,}")


def pointer_problem(pointer: dict[str, Any]) -> str | None:
    """The first field of ``index.json`` that is missing or invalid; None if there is none."""

    def count(value: Any, least: int = 0) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def named(value: Any, *counts: str) -> bool:
        is_name = isinstance(value, dict) and isinstance(value.get("name"), str)
        return is_name and bool(_SEGMENT_NAME.fullmatch(value["name"])) and all(count(value.get(n)) for n in counts)

    segments = pointer.get("segments")
    checks = {
        "model": isinstance(pointer.get("model"), str),
        "dim": count(pointer.get("dim"), 1) and pointer["dim"] < 2**20,
        "factory": isinstance(pointer.get("factory"), str),
        "count": count(pointer.get("count")),
        "serial": count(pointer.get("serial")),
        "segments": isinstance(segments, list) and all(named(segment, "rows") for segment in segments),
        "faiss": pointer.get("faiss", ...) is None or named(pointer.get("faiss"), "rows", "trained_on"),
    }
    return next((name for name, good in checks.items() if not good), None)


@dataclass(frozen=True)
class Item:
    """What a vector represents.

    Attributes:
        id: unique name, e.g. the path of an image inside its folder.
        stamp: cheap state of the source, e.g. size and modification time; equal stamps mean "unchanged".
        digest: hash of the content, or "". Compared if the stamp differs, so that a touched or copied file counts as
            unchanged.
        metadata: any JSON value, returned with search results.
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
            UserError: there is no index, it has another format, or another model than ``model_id`` made it.
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
        wrong = pointer_problem(pointer)
        if wrong:
            raise UserError(f"{file}: field {wrong!r} is invalid; the index is damaged, make it again")
        if model_id is not None and model_key(pointer["model"]) != model_key(model_id):
            raise UserError(
                f"{path}: index made with {pointer['model']}, not with {model_id}; their vectors are not comparable: "
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
            if len(row_of) != sum(item is not None for item in rows):
                raise self._damaged(f"{segment['name']}.jsonl")
            segments.append(self.load_vectors(segment))
        return rows, segments

    def load_vectors(self, segment: dict[str, Any]) -> np.ndarray:
        """A segment's vectors, a read-only memory map."""
        name = f"{segment['name']}.npy"
        try:
            vectors = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise
        except Exception:  # the header is Python source, and NumPy passes on its parser's errors
            raise self._damaged(name) from None
        is_array = isinstance(vectors, np.ndarray) and vectors.dtype == np.float32
        if not is_array or vectors.shape != (segment["rows"], self.pointer["dim"]):
            raise self._damaged(name)
        return vectors

    def append(self, lines: list[str], vectors: np.ndarray, removed: Iterable[str], count: int) -> None:
        """Add a segment of items after dropping the earlier ones whose ids are ``removed``; ``count`` then remain."""
        drops = [json.dumps({"removed": name}, ensure_ascii=False) for name in removed]
        segment = self._write_segment(drops + lines, vectors)
        # The rows of a FAISS index stay valid only while none is dropped.
        current = None if drops else self.pointer["faiss"]
        self._switch(segments=[*self.pointer["segments"], segment], count=count, faiss=current)

    def merge(self, lines: list[str], vectors: np.ndarray) -> None:
        """Replace all segments with one segment of all living rows, in their order."""
        segments = [self._write_segment(lines, vectors)] if lines else []
        self._switch(segments=segments, count=len(lines))

    def set_factory(self, factory: str) -> None:
        """Switch to another kind of FAISS index; the vectors stay."""
        self._switch(factory=factory, faiss=None)

    def write_faiss(self, index: faiss.Index, trained_on: int) -> None:
        """Save a FAISS index over the first rows, trained when there were ``trained_on``."""
        name = self._next_name()
        with whole_file(self.path / f"{name}.faiss") as temporary, open(temporary, "wb") as file:
            faiss.write_index(index, cast(Any, faiss).PyCallbackIOWriter(file.write))
        digest = sha256_of(self.path / f"{name}.faiss")
        self._switch(faiss={"name": name, "rows": index.ntotal, "trained_on": trained_on, "sha256": digest})

    def read_faiss(self) -> faiss.Index | None:
        """The FAISS index as last written, over the first ``ntotal`` rows; None if there is no valid one.

        Raises:
            UserError, FileNotFoundError: as :meth:`load`.
        """
        if self.pointer["faiss"] is None:
            return None
        name = f"{self.pointer['faiss']['name']}.faiss"
        # FAISS does not check the links of a graph, so one changed bit may crash the process.
        if self.pointer["faiss"].get("sha256") not in (None, sha256_of(self.path / name)):
            raise self._damaged(name)
        try:
            # Read through Python, because FAISS accepts only UTF-8 paths.
            with open(self.path / name, "rb") as file, _no_larger_than(os.fstat(file.fileno()).st_size):
                index = faiss.read_index(cast(Any, faiss).PyCallbackIOReader(file.read))
        except (RuntimeError, MemoryError, ValueError):
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
        """The atomic step that makes new files valid; replaced files are deleted only afterwards."""
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
            items = [Item(**record) for record in records if "removed" not in record]
        except (TypeError, ValueError, RecursionError):
            raise self._damaged(f"{name}.jsonl") from None
        texts = [text for item in items for text in (item.id, item.stamp, item.digest)]
        if not all(isinstance(text, str) for text in texts + removed) or len(set(removed)) < len(removed):
            raise self._damaged(f"{name}.jsonl")
        if not all(isinstance(item.metadata, dict) for item in items):
            raise self._damaged(f"{name}.jsonl")
        return removed, items

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.path / name}: does not match {POINTER}; the index is damaged, make it again")


@contextlib.contextmanager
def _no_larger_than(size: int) -> Iterator[None]:
    """Let FAISS refuse a file that claims more than ``size`` bytes of vectors, before it allocates the memory."""
    names = ("deserialization_vector_byte_limit", "deserialization_loop_limit")
    known = [name for name in names if hasattr(faiss, f"set_{name}")]  # since FAISS 1.14
    with _faiss_limits:
        before = {name: getattr(faiss, f"get_{name}")() for name in known}
        try:
            for name in known:
                getattr(faiss, f"set_{name}")(size)
            yield
        finally:
            for name, value in before.items():
                getattr(faiss, f"set_{name}")(value)


def living(rows: list[Item | None], segments: list[np.ndarray], dim: int) -> tuple[list[Item], np.ndarray]:
    """Items that count and their vectors, float32 [n, D]; a memory map if nothing has to be copied."""
    alive = np.array([item is not None for item in rows], dtype=bool)
    items = [item for item in rows if item is not None]
    if len(segments) == 1 and alive.all():
        return items, segments[0]
    kept, start = [np.empty((0, dim), dtype=np.float32)], 0
    for segment in segments:
        kept.append(segment[alive[start : start + len(segment)]])
        start += len(segment)
    return items, np.concatenate(kept)
