"""Graceful stop of a run: the first Ctrl-C or SIGTERM is recorded, the second acts at once."""

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
    """Whether this process was asked to stop.

    Attributes:
        signal: the signal received, SIGINT or SIGTERM; 0 if none.
    """

    # A launcher forwards Ctrl-C to processes that already received it; a second signal this soon is the same one.
    ECHO_SECONDS = 1.0

    def __init__(self, launched: bool = False) -> None:
        self.signal = 0
        self._since = 0.0
        self._at_once = False
        self._launched = launched

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle both signals until the block ends. Does nothing outside the main thread, as Python requires."""
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
        """Within the block the first signal (or an earlier one) raises at once: for work that changes no state."""
        self._at_once = True
        try:
            if self.signal:
                self.leave()
            yield
        finally:
            self._at_once = False

    def leave(self) -> NoReturn:
        """Raise the exception of the signal: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
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
