"""Create a folder of many files so that it is either complete or missing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(path: str | Path, is_complete: Callable[[], bool]) -> Iterator[Path | None]:
    """Yield an empty sibling folder ``.<name>.part``; on success rename it to ``path``, which must be empty or missing.

    One process at a time creates it; others wait, and get None if ``is_complete()`` is then true. The next process
    removes the remains of a killed one. If the body raises, the sibling is removed.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.part"
    handle = _lock(part)
    try:
        if is_complete():
            shutil.rmtree(part)
            yield None
            return
        for entry in part.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield part
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _lock(part: Path) -> int:
    """Create and lock the folder; returns its open handle. The lock ends with the process, even if it is killed."""
    while True:
        part.mkdir(exist_ok=True)
        handle = os.open(part, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # While we waited the other process may have renamed this very folder; then start with a new one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(part)):
                return handle
        os.close(handle)
