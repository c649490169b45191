"""Files inside uncompressed tars, read by their place: a record names the tar, where its image begins, and its length.

So a shard is read in any order without unpacking it, and a record is all that a reading process needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIELD = "tar"
"""Field of a record: ``{"file": "000.tar", "offset": 1536, "bytes": 20480}``, the file relative to the media root."""


def region_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the field :data:`FIELD` of a record: one phrase; None if it is good or not there."""
    region = record.get(FIELD)
    if FIELD not in record:
        return None
    if not isinstance(region, dict) or not isinstance(region.get("file"), str):
        return f'field "{FIELD}": expected are the keys file, offset and bytes; prepare the dataset again'
    for key in ("offset", "bytes"):
        value = region.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return f'field "{FIELD}.{key}" is no whole number; prepare the dataset again'
    return None


def read_region(path: Path, offset: int, length: int) -> bytes:
    """The ``length`` bytes of a file from ``offset`` on; fewer if the file ends before.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        pieces = []
        while length > 0 and (piece := file.read(length)):
            pieces.append(piece)
            length -= len(piece)
    return b"".join(pieces)
