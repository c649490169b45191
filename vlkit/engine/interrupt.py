"""Stopping a run in good order: the first Ctrl-C or SIGTERM is remembered, the second acts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class StopRequest:
    """Whether somebody asked this process to stop.

    Attributes:
        signal: the signal that asked, SIGINT or SIGTERM; 0 if none did.
    """

    # A launcher passes the terminal's Ctrl-C on to processes that already got it; so soon after, it is the same one.
    ECHO_SECONDS = 1.0

    def __init__(self, launched: bool = False) -> None:
        self.signal = 0
        self._since = 0.0
        self._at_once = False
        self._launched = launched

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle both signals until the block ends. Outside the main thread, where Python forbids it, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block the first signal, or one that came before, raises: for work that changes no state."""
        self._at_once = True
        try:
            if self.signal:
                self.leave()
            yield
        finally:
            self._at_once = False

    def leave(self) -> NoReturn:
        """Raise what the signal means: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.signal)
        if again and self._launched and time.monotonic() - self._since < self.ECHO_SECONDS:
            return
        self.signal, self._since = self.signal or number, time.monotonic()
        if again or self._at_once:
            self.leave()
        # Not logging: a handler may interrupt a write to the same stream.
        os.write(2, b"\nstopping: finishing this step and writing a checkpoint (once more to stop at once)\n")
