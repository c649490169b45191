"""Running the application until a signal, without a failed request at the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from vlkit.errors import UserError
from vlkit.serving.api.guard import Guard

FINISH_SECONDS = 60
"""Longest time that running requests may take after the port has closed."""


class DrainingServer(uvicorn.Server):
    """A server that, on SIGTERM or Ctrl-C, first says on ``/healthz`` that it goes, and stops ``drain_seconds`` later.

    In that time load balancers stop sending, and clients learn from ``Connection: close`` to connect elsewhere. A
    second signal stops at once.
    """

    def __init__(self, config: uvicorn.Config, guard: Guard, drain_seconds: float) -> None:
        super().__init__(config)
        self._guard, self._seconds = guard, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the draining."""
        if self._guard.draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._guard.draining = True
        leave: Callable[..., Any] = super().handle_exit
        self._loop.call_soon_threadsafe(self._loop.call_later, self._seconds, leave, sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """An open port; 0 = any free one.

    Raises:
        UserError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); choose another") from None
    return opened


def serve(app: Guard, opened: socket.socket, drain_seconds: float = 5.0) -> None:
    """Serve on an open port until SIGTERM or Ctrl-C; running requests are answered first.

    Raises:
        KeyboardInterrupt, SystemExit: those of the signal, after the end.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=FINISH_SECONDS, server_header=False
    )
    DrainingServer(config, app, drain_seconds).run([opened])
