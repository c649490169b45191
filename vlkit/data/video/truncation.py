"""Whether a file is as long as its container says. Counts and durations in headers may be wrong; lengths are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_SEGMENT = b"\x18\x53\x80\x67"


def is_whole(path: str | Path) -> bool:
    """Whether every outer part of an MP4, Matroska or AVI file ends inside the file; False where it is not known.

    Fewer frames than the header states mean damage only if this is False: edit lists hide frames, and interrupted
    recorders leave wrong counts and durations in complete files.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] == b"RIFF":
            return _parts_end_inside(file, size, _riff)
        if start[:4] == b"\x1aE\xdf\xa3":
            return _matroska(file, size)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return _parts_end_inside(file, size, _box)
    return False


def _parts_end_inside(file: BinaryIO, size: int, length_of) -> bool:
    position = 0
    while position < size:
        file.seek(position)
        length = length_of(file.read(16), size - position)
        if length < 8:
            return False
        position += length
    return position == size


def _riff(head: bytes, _rest: int) -> int:
    """Bytes of a RIFF chunk with its head; chunks are padded to even lengths."""
    length = int.from_bytes(head[4:8], "little")
    return 8 + length + length % 2


def _box(head: bytes, rest: int) -> int:
    """Bytes of an MP4 box: in 4 bytes, in 8 (1), or up to the end of the file (0)."""
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        return int.from_bytes(head[8:16], "big")
    return length or rest


def _matroska(file: BinaryIO, size: int) -> bool:
    """The EBML head is followed by one segment, whose length may be unknown."""
    file.seek(4)
    head, known = _ebml_length(file)
    file.seek(head, os.SEEK_CUR)
    if not known or file.read(4) != _SEGMENT:
        return False
    length, known = _ebml_length(file)
    return known and file.tell() + length <= size


def _ebml_length(file: BinaryIO) -> tuple[int, bool]:
    """(length, whether it is known): a first byte whose leading zeros count the bytes that follow."""
    first = int.from_bytes(file.read(1), "big")
    if not first:
        return 0, False
    more = 8 - first.bit_length()
    value = (first & (1 << (7 - more)) - 1) << 8 * more | int.from_bytes(file.read(more), "big")
    return value, value != (1 << 7 * (more + 1)) - 1
