"""Where snapshots lie: files in a memory file system, or in a process that holds them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

import vlkit.engine.snapshots.holder as holder

KEEP_SECONDS = 3600
"""How long a holder without clients stays: the time in which a crashed run has to be started again."""
_START_SECONDS = 60
_NAME = re.compile(r"node-\d+-[01]")


class Memory(Protocol):
    """Files that outlive the processes of a run."""

    def names(self) -> list[str]:
        """Names of the files, sorted."""
        ...

    def open(self, name: str) -> int:
        """A file descriptor to read and write a file; it is created if it is missing.

        Raises:
            OSError: it cannot be opened.
        """
        ...

    def free(self) -> int:
        """Bytes that can be written."""
        ...

    def remove(self) -> None:
        """Delete everything; the memory is free again."""
        ...


class FolderMemory:
    """Files in a folder of a memory file system; the kernel owns the memory.

    Args:
        path: the folder; created with the first file, for this user alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """See :class:`Memory`."""
        try:
            return sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except FileNotFoundError:  # nothing was written yet, or another process of the run has just removed it
            return []

    def open(self, name: str) -> int:
        """See :class:`Memory`."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o600)

    def free(self) -> int:
        """See :class:`Memory`."""
        try:
            disk = os.statvfs(self.path)
        except FileNotFoundError:
            disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize

    def remove(self) -> None:
        """See :class:`Memory`."""
        for name in self.names():
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not there, or another process is in it
            self.path.rmdir()


class HeldMemory:
    """Files in the memory of a process of their own (:mod:`vlkit.engine.snapshots.holder`), which the first one starts.

    Several processes of a machine may use the same.

    Args:
        token: names the run.
    """

    def __init__(self, token: str) -> None:
        self._address = f"vlkit-{os.getuid()}-{token}"
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return "the process that holds the snapshots"

    @staticmethod
    def possible() -> bool:
        """Whether this system has anonymous files in memory (Linux)."""
        return hasattr(os, "memfd_create") and hasattr(socket, "SO_PEERCRED") and hasattr(socket, "send_fds")

    def running(self) -> bool:
        """Whether a process holds memory for this run."""
        with self._lock:
            return self._connected() is not None

    def names(self) -> list[str]:
        """See :class:`Memory`."""
        with self._lock:
            connection = self._connected()
            if connection is None:
                return []
            try:
                connection.send(b"names")
                return sorted(connection.recv(1 << 16).decode().split()[1:])
            except OSError:  # it was killed
                self._connection = None
                return []

    def open(self, name: str) -> int:
        """See :class:`Memory`."""
        with self._lock:
            connection = self._connected() or self._started()
            try:
                connection.send(f"open {name}".encode())
                _, files, _, _ = socket.recv_fds(connection, holder.LONGEST, 1)
            except OSError:
                files = []
            if not files:  # it was killed: the next snapshot starts another
                self._connection = None
                raise OSError("the process that holds the snapshots has ended")
            return files[0]

    def free(self) -> int:
        """See :class:`Memory`: what the machine has, or less where a container may use less."""
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        with contextlib.suppress(OSError, ValueError):  # no limit
            group = Path("/sys/fs/cgroup")
            limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
            counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            # Files that were read count as used until others need the memory: after an epoch that is all of it.
            free = min(free, limit - used + int(counts.get("inactive_file", 0)))
        return free

    def remove(self) -> None:
        """See :class:`Memory`: end the process."""
        with self._lock:
            connection = self._connected()
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.send(b"end")
                    connection.recv(holder.LONGEST)
                connection.close()
                self._connection = None

    def _connected(self) -> socket.socket | None:
        if self._connection is None and self.possible():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(f"\0{self._address}")
            except OSError:
                connection.close()
                return None
            if not holder.same_user(connection):
                connection.close()
                raise OSError(f"the address {self._address} belongs to another user")
            self._connection = connection
        return self._connection

    def _started(self) -> socket.socket:
        """Start the process, in a session of its own so that a launcher does not end it with this one."""
        words = [sys.executable, "-S", "-E", holder.__file__, self._address, str(KEEP_SECONDS)]
        nowhere = subprocess.DEVNULL
        subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True, cwd="/")
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            connection = self._connected()
            if connection is not None:
                return connection
            time.sleep(0.02)
        raise OSError("the process that holds the snapshots did not start")
