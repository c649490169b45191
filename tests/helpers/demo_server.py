"""Start the web demo in a process of its own and wait until it answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from helpers.scripts import command

LONGEST_START = 120.0
"""Seconds; a busy machine may need several times what it takes alone."""


@dataclass
class DemoServer:
    """A running demo: its address and process, and the seconds until it answered."""

    url: str
    process: subprocess.Popen[str]
    seconds: float

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def demo_server(*words: object, **environment: str) -> Iterator[DemoServer]:
    """``python demos/app.py`` with these flags on a free port, and these environment variables on top of ours."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.monotonic()
    process = subprocess.Popen(
        command("demos/app.py", "--port", port, "--device", "cpu", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("the demo is at"):
                break
        assert said and said[-1].startswith("the demo is at"), "".join(said)
        server = DemoServer(f"http://127.0.0.1:{port}", process, time.monotonic() - start)
        assert server.seconds < LONGEST_START
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
