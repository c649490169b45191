"""How often a folder of cached taps was used, and whether a run uses it now."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlkit.files import cache_folder

try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl: Any = None

KEY_FILE = "key.json"
USES_FILE = "uses.jsonl"


def tap_folder() -> Path:
    """The folder of all tap caches, unless ``--cache`` names another one."""
    return cache_folder() / "taps"


class Uses(NamedTuple):
    """What runs asked of a folder's rows.

    Attributes:
        read: rows that training read.
        computed: of them, those that had to be computed first.
    """

    read: int = 0
    computed: int = 0

    def __add__(self, other: object) -> Uses:
        if not isinstance(other, Uses):
            return NotImplemented
        return Uses(self.read + other.read, self.computed + other.computed)

    def __sub__(self, other: Uses) -> Uses:
        return Uses(self.read - other.read, self.computed - other.computed)

    @property
    def hit_rate(self) -> float | None:
        """Share of the rows that were on disk already, 0 to 1; None before any was read."""
        return 1 - self.computed / self.read if self.read else None


def add_uses(folder: Path, uses: Uses) -> None:
    """Append a line to the folder's record; a folder that cannot be written to is read all the same."""
    line = json.dumps(uses._asdict())
    with contextlib.suppress(OSError), open(folder / USES_FILE, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_uses(folder: Path) -> Uses:
    """The sum of the folder's record; lines cut off by a kill count nothing."""
    total = Uses()
    try:
        lines = (folder / USES_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return total
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            total += Uses(int(entry["read"]), int(entry["computed"]))
    return total


def hold(folder: Path) -> IO[bytes] | None:
    """Mark a folder as in use until the returned file is closed, also by the end of the process.

    Returns:
        None if the folder was removed at this moment, or its file system cannot mark it.
    """
    try:
        file = open(folder / KEY_FILE, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
    file.close()
    return None


def take(folder: Path) -> IO[bytes] | None:
    """Mark a folder for removal; None if it is in use.

    Raises:
        OSError: the folder cannot be read.
    """
    file = open(folder / KEY_FILE, "rb")  # noqa: SIM115
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass  # a file system without locks
    return file
