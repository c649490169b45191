"""Rows of bytes on disk, addressed by a digest: append-only shards, each written by one process and read by all.

A folder holds ``key.json`` (everything the rows depend on), ``uses.jsonl`` (how often rows were read) and, for every
process that wrote, ``NAME.taps`` (the concatenated rows) with ``NAME.index`` (the position of each row). Rows are
written first, then one group of index records marks them as complete. A group has checksums of itself and of each of
its rows, so that a partial row left by a killed process or a power failure is never read as a row.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkit.byte_sizes import size_text
from vlkit.errors import UserError, some
from vlkit.files import read_json, write_json
from vlkit.tap_cache.usage import KEY_FILE, hold

log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30
_HEADER = struct.Struct("<4sII")  # magic, number of records, checksum of the records
_MAGIC = b"taps"
_RECORD = np.dtype([("key", "V16"), ("offset", "<i8"), ("units", "<i4"), ("summary", "<i4"), ("check", "<u4")])


def digest(*what: Any) -> bytes:
    """16-byte hash of ``what`` (JSON values)."""
    return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).digest()


class _Entry(NamedTuple):
    shard: int
    offset: int
    units: int
    summary: int
    check: int


class _Shard:
    """One process's files, as seen by a reader."""

    def __init__(self, index: Path, read: int = 0, broken: bool = False) -> None:
        self.index, self.data = index, index.with_suffix(".taps")
        self.read, self.broken = read, broken  # parsed bytes of the index; whether the rest is damaged
        self.map = np.empty(0, dtype=np.uint8)

    def bytes(self, offset: int, count: int) -> np.ndarray:
        """``count`` bytes from ``offset``; fewer if the file is shorter."""
        if offset + count > len(self.map) and self.data.stat().st_size:
            self.map = np.memmap(self.data, dtype=np.uint8, mode="r")
        return self.map[offset : offset + count]


class TapStore:
    """A folder of rows for one key.

    Several processes may use the folder at the same time: each writes its own shards, and :meth:`refresh` finds the
    rows that the others have completed. Duplicate rows are read once.

    Args:
        root: folder of all caches.
        name: name of this cache, e.g. ``image``.
        key: everything the rows depend on, as JSON values; each key has its own folder.
        unit: bytes per unit; a row consists of whole units.
    """

    def __init__(self, root: Path, name: str, key: Mapping[str, Any], unit: int) -> None:
        self.root, self.name, self.unit = root, name, unit
        self.key = json.loads(json.dumps(key))  # as JSON returns it: tuples become lists
        self.folder = root / f"{name}-{digest(self.key).hex()[:16]}"
        self._entries: dict[bytes, _Entry] = {}
        self._spare: dict[bytes, list[_Entry]] = {}
        self._checked: set[bytes] = set()
        self._shards: list[_Shard] = []
        self._own: tuple[int, Path] | None = None
        self._open()
        self.refresh()

    def _open(self) -> None:
        """Make the folder, and mark it as in use."""
        try:
            for _ in range(2):  # once more if it is removed at this moment
                self.folder.mkdir(parents=True, exist_ok=True)
                if not (self.folder / KEY_FILE).exists():
                    write_json(self.folder / KEY_FILE, self.key)
                self._held = hold(self.folder)
                if self._held:
                    break
        except OSError as error:
            raise _unwritable(self.root, error) from error

    def __getstate__(self) -> dict[str, Any]:
        maps = [_Shard(shard.index, shard.read, shard.broken) for shard in self._shards]
        return {**self.__dict__, "_own": None, "_shards": maps, "_held": None}

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    # --- reading ---

    def refresh(self) -> None:
        """Look for rows that any process has completed since the last call."""
        known = {shard.index.name for shard in self._shards}
        names = (name for name in os.listdir(self.folder) if name.endswith(".index") and name not in known)
        self._shards += [_Shard(self.folder / name) for name in sorted(names)]
        for number, shard in enumerate(self._shards):
            if not shard.broken and shard.index.stat().st_size > shard.read:
                self._read_index(number, shard)

    def _read_index(self, number: int, shard: _Shard) -> None:
        with open(shard.index, "rb") as file:
            file.seek(shard.read)
            text = file.read()
        size, place = (shard.data.stat().st_size if shard.data.exists() else 0), 0
        for end, records in _groups(text):
            if not end:
                log.warning("%s: damaged; the rows after byte %d are ignored", shard.index, shard.read + place)
                shard.broken = True
                break
            for key, *where in records.tolist():
                entry = _Entry(number, *where)
                if entry.offset + entry.units * self.unit > size:
                    continue  # its data never reached the disk
                if self._entries.setdefault(key, entry) != entry:
                    self._spare.setdefault(key, []).append(entry)
            place = end
        shard.read += place

    def read(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor, Tensor] | None:
        """The rows of ``keys``, or None if one of them is missing (a damaged row counts as missing).

        Returns:
            Bytes [B, U, unit] uint8, zero after the end of each row; units [B] and summary positions [B] int64.
        """
        if any(key not in self._entries for key in keys):
            return None
        entries = [self._entries[key] for key in keys]
        data = np.empty((len(keys), max(entry.units for entry in entries), self.unit), dtype=np.uint8)
        for row, key, entry in zip(data, keys, entries, strict=True):
            source = self._shards[entry.shard].bytes(entry.offset, entry.units * self.unit)
            if key not in self._checked and not self._is_good(key, entry, source):
                return self.read(keys)
            row[: entry.units] = source.reshape(entry.units, self.unit)
            row[entry.units :] = 0
        units, summary = (torch.tensor([getattr(e, name) for e in entries]) for name in ("units", "summary"))
        return torch.from_numpy(data), units, summary

    def _is_good(self, key: bytes, entry: _Entry, source: np.ndarray) -> bool:
        """Verify the checksum of a row on first read; a damaged row is dropped."""
        if len(source) == entry.units * self.unit and zlib.crc32(source.data) == entry.check:
            self._checked.add(key)
            return True
        log.warning("%s: damaged row at byte %d; recomputing it", self._shards[entry.shard].data, entry.offset)
        del self._entries[key]
        if self._spare.get(key):
            self._entries[key] = self._spare[key].pop()
        return False

    # --- writing ---

    def write(self, keys: Sequence[bytes], data: Tensor, units: Tensor, summary: Tensor) -> None:
        """Add rows atomically: if the process is killed, none of them is added.

        Args:
            keys: B digests.
            data: [B, U, unit] uint8; row i consists of its first ``units[i]`` units.
            units: [B] int64.
            summary: [B] int64.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        records = np.empty(len(keys), dtype=_RECORD)
        try:
            shard = self._own_shard()
            with open(shard.with_suffix(".taps"), "ab") as file:
                offset = file.tell()
                for i, (key, count) in enumerate(zip(keys, units.tolist(), strict=True)):
                    row = data[i, :count].reshape(-1).numpy()
                    file.write(row.data)
                    records[i] = (np.void(key), offset, count, int(summary[i]), zlib.crc32(row.data))
                    offset += len(row)
            body = records.tobytes()
            with open(shard.with_suffix(".index"), "ab") as file:
                file.write(_HEADER.pack(_MAGIC, len(keys), zlib.crc32(body)) + body)
        except OSError as error:
            self._own = None  # the file may end in a partial row
            raise _unwritable(self.folder, error) from error
        self.refresh()

    def _own_shard(self) -> Path:
        """The shard of this process; a new one if it is full or the process was forked."""
        pid, shard = self._own or (0, self.folder)
        if pid != os.getpid() or shard.with_suffix(".taps").stat().st_size > SHARD_BYTES:
            shard = self.folder / f"{os.getpid()}-{secrets.token_hex(6)}"
            self._own = os.getpid(), shard
        return shard

    # --- disk space and other caches ---

    def free_bytes(self) -> int:
        """Free bytes on disk."""
        return shutil.disk_usage(self.folder).free

    def report_others(self) -> None:
        """Log the caches in this folder with the same name but another key."""
        others = [path for path in sorted(self.root.glob(f"{self.name}-*/{KEY_FILE}")) if path.parent != self.folder]
        if not others:
            return
        latest = max(others, key=lambda path: path.stat().st_mtime)
        try:
            old = read_json(latest)
        except UserError:
            old = {}
        changed = [name for name in {**old, **self.key} if old.get(name) != self.key.get(name)]
        size = sum(file.stat().st_size for path in others for file in path.parent.iterdir())
        log.info(
            "tap cache: %d other folder(s) %s-* in %s (%s) belong to another key (%s differ from %s); "
            "`vlkit cache` lists and removes them",
            *(len(others), self.name, self.root, size_text(size), some(changed, 12) or "nothing", latest.parent.name),
        )


def stored_rows(folder: Path) -> int:
    """Different rows that the indices of a folder list, without a look at their data.

    Raises:
        OSError: an index cannot be read.
    """
    found: set[bytes] = set()
    for index in folder.glob("*.index"):
        for _, records in _groups(index.read_bytes()):
            found.update(records["key"].tolist())
    return len(found)


def _groups(text: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """The groups of an index: end of the group, its records; at the first damaged one end 0 and no records.

    A group that is still being written, or was cut off by a kill, ends the iteration.
    """
    place = 0
    while place + _HEADER.size <= len(text):
        magic, count, check = _HEADER.unpack_from(text, place)
        end = place + _HEADER.size + count * _RECORD.itemsize
        if magic == _MAGIC and end > len(text):
            return
        body = text[place + _HEADER.size : end]
        if magic != _MAGIC or zlib.crc32(body) != check:
            yield 0, np.empty(0, _RECORD)
            return
        yield end, np.frombuffer(body, _RECORD)
        place = end


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"--cache {folder}: cannot write ({reason}); free some space or give another folder")
