"""Two slots per node in memory that outlives every process, written in turn: one always holds a whole snapshot.

(``multiprocessing.shared_memory`` would not do: it is removed with its creator.) A slot's header is written last and
holds checksums: a slot that was cut off does not count.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from dataclasses import dataclass, replace

from vlkit.engine.snapshots.memory import Memory

_MAGIC = b"vlkitsn1"
# magic, node, nodes (0 = the payload is the whole content), step, bytes of the payload, its CRC-32, bytes of the whole
# content, its CRC-32; then the CRC-32 of this header.
_HEADER = struct.Struct("<8sIIQQIQI")
_START = 4096  # of the payload


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
    """The slots in some memory.

    Args:
        memory: where they lie.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def write(self, snapshot: Snapshot) -> None:
        """Replace this node's older slot.

        Raises:
            OSError: the memory is full; the newer slot stays.
        """
        with contextlib.ExitStack() as stack:
            files = [self.memory.open(f"node-{snapshot.node}-{number}") for number in (0, 1)]
            for file in files:
                stack.callback(os.close, file)
            steps = [found[0].step if (found := _header_of(file)) else -1 for file in files]
            file = files[steps.index(min(steps))]
            body = snapshot.payload
            payload_crc = zlib.crc32(body) if snapshot.nodes else snapshot.crc  # a replica is the whole content
            fields = (_MAGIC, snapshot.node, snapshot.nodes, snapshot.step, len(body), payload_crc)
            header = _HEADER.pack(*fields, snapshot.length, snapshot.crc)
            os.pwrite(file, bytes(_START), 0)  # from here on the old content does not count
            # Fails cleanly where the memory is full; a later write would as well, but half way.
            os.posix_fallocate(file, 0, _START + len(body))
            view, start = memoryview(body), 0
            while start < len(body):
                start += os.pwrite(file, view[start:], _START + start)
            os.ftruncate(file, _START + len(body))
            os.pwrite(file, header + zlib.crc32(header).to_bytes(4, "little"), 0)

    def read(self) -> list[Snapshot]:
        """Every whole snapshot, of any node."""
        found = []
        for name in self.memory.names():
            with contextlib.suppress(OSError):
                file = self.memory.open(name)
                try:
                    found.append(_read(file))
                finally:
                    os.close(file)
        return [snapshot for snapshot in found if snapshot is not None]


def _header_of(file: int) -> tuple[Snapshot, int, int] | None:
    """The snapshot that a valid header describes, without its payload, of which it gives bytes and CRC-32."""
    content = os.pread(file, _HEADER.size + 4, 0)
    header, check = content[: _HEADER.size], content[_HEADER.size :]
    if len(content) < _HEADER.size + 4 or zlib.crc32(header) != int.from_bytes(check, "little"):
        return None
    magic, node, nodes, step, size, payload_crc, length, crc = _HEADER.unpack(header)
    return (Snapshot(step, node, nodes, length, crc, b""), size, payload_crc) if magic == _MAGIC else None


def _read(file: int) -> Snapshot | None:
    known = _header_of(file)
    if known is None:
        return None
    snapshot, size, payload_crc = known
    pieces, start = [], _START
    while piece := os.pread(file, 1 << 30, start):
        pieces.append(piece)
        start += len(piece)
    payload = b"".join(pieces)
    whole = len(payload) == size and zlib.crc32(payload) == payload_crc
    return replace(snapshot, payload=payload) if whole else None
