"""Peak resident memory of this process, so that a test can state how much a body may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 2**20


@contextlib.contextmanager
def at_most(mib: int) -> Iterator[None]:
    """The body may raise the resident memory of this process by ``mib`` MiB at its peak, and no more.

    Skipped without a word where the system does not tell (Linux does).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from what is held now
    except OSError:
        yield
        return
    before = _peak()
    yield
    grown = (_peak() - before) / MIB
    if grown > mib:
        pytest.fail(f"took {grown:.0f} MiB, at most {mib} are allowed")


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
