"""Two slots per node in a folder of a memory file system, written in turn: one always holds a whole snapshot.

The kernel owns the memory, so it outlives every process (``multiprocessing.shared_memory`` would be removed with its
creator). A slot's header is written last and holds checksums: a slot that was cut off does not count.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

_MAGIC = b"vlkitsn1"
# magic, node, nodes (0 = the payload is the whole content), step, bytes of the payload, its CRC-32, bytes of the whole
# content, its CRC-32; then the CRC-32 of this header.
_HEADER = struct.Struct("<8sIIQQIQI")
_START = 4096  # of the payload
_NAME = re.compile(r"node-(\d+)-([01])")


@dataclass(frozen=True)
class Snapshot:
    """What a slot holds.

    Attributes:
        step: optimizer steps before it was taken.
        node: the node that wrote it.
        nodes: number of nodes over which the content is spread; 0 = this is all of it.
        length, crc: bytes and CRC-32 of the whole content.
        payload: all of the content, or this node's piece.
    """

    step: int
    node: int
    nodes: int
    length: int
    crc: int
    payload: bytes


class Slots:
    """The slots in a folder.

    Args:
        folder: on a memory file system; created on the first write, for this user alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, snapshot: Snapshot) -> None:
        """Replace this node's older slot.

        Raises:
            OSError: the memory is full; the newer slot stays.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = [self.folder / f"node-{snapshot.node}-{number}" for number in (0, 1)]
        steps = [found[0].step if (found := _header_of(path)) else -1 for path in paths]
        path = paths[steps.index(min(steps))]
        body = snapshot.payload
        fields = (_MAGIC, snapshot.node, snapshot.nodes, snapshot.step, len(body), zlib.crc32(body))
        header = _HEADER.pack(*fields, snapshot.length, snapshot.crc)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, bytes(_START), 0)  # from here on the old content does not count
            # Fails cleanly where the memory is full; a later write would as well, but half way.
            os.posix_fallocate(file, 0, _START + len(body))
            view, start = memoryview(body), 0
            while start < len(body):
                start += os.pwrite(file, view[start:], _START + start)
            os.ftruncate(file, _START + len(body))
            os.pwrite(file, header + zlib.crc32(header).to_bytes(4, "little"), 0)
        finally:
            os.close(file)

    def read(self) -> list[Snapshot]:
        """Every whole snapshot in the folder, of any node."""
        if not self.folder.is_dir():
            return []
        found = [_read(path) for path in sorted(self.folder.iterdir()) if _NAME.fullmatch(path.name)]
        return [snapshot for snapshot in found if snapshot is not None]

    def remove(self) -> None:
        """Delete everything; the memory is free again."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process is in it, or has removed it
                self.folder.rmdir()


def _header_of(path: Path) -> tuple[Snapshot, int, int] | None:
    """The snapshot that a valid header describes, without its payload, of which it gives bytes and CRC-32."""
    try:
        with open(path, "rb") as file:
            content = file.read(_HEADER.size + 4)
    except OSError:
        return None
    header, check = content[: _HEADER.size], content[_HEADER.size :]
    if len(content) < _HEADER.size + 4 or zlib.crc32(header) != int.from_bytes(check, "little"):
        return None
    magic, node, nodes, step, size, payload_crc, length, crc = _HEADER.unpack(header)
    return (Snapshot(step, node, nodes, length, crc, b""), size, payload_crc) if magic == _MAGIC else None


def _read(path: Path) -> Snapshot | None:
    known = _header_of(path)
    if known is None:
        return None
    snapshot, size, payload_crc = known
    try:
        with open(path, "rb") as file:
            file.seek(_START)
            payload = file.read()
    except OSError:
        return None
    whole = len(payload) == size and zlib.crc32(payload) == payload_crc
    return replace(snapshot, payload=payload) if whole else None
