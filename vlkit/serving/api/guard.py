"""What stands before every request: keys, limits of size and number, and metrics."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from vlkit.errors import UserError
from vlkit.files import read_text, text_lines
from vlkit.serving.api.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OPEN = ("/healthz", "/metrics")
"""Paths without a key or limits, for the load balancer and Prometheus."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: of a request.
        inputs: per request.
        waiting: requests at once; further ones get 503 and may try another replica.
        threads: requests that compute at once; while the model is busy, their inputs form its next batch.
    """

    body_bytes: int = 32 * 2**20
    inputs: int = 256
    waiting: int = 256
    threads: int = 32


def problem(status: int, message: str, **headers: str) -> JSONResponse:
    """An error in the form of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status, headers)


class Guard:
    """ASGI middleware.

    Args:
        app: the application.
        limits: see :class:`Limits`.
        keys: accepted API keys; empty = anyone may ask.
        metrics: counts every request.

    Attributes:
        draining: the server is about to stop: ``/healthz`` says 503, and answers close their connections.
    """

    def __init__(self, app: Any, limits: Limits, keys: Sequence[str], metrics: Metrics) -> None:
        self.app, self._limits, self._metrics = app, limits, metrics
        self._keys = [key.encode() for key in keys]
        self._running = 0
        self.draining = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        self._running += 1
        self._metrics.running(self._running)
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, noting)
            else:
                await self.app(scope, self._counted(receive), noting)
        finally:
            self._running -= 1
            self._metrics.running(self._running)
            self._metrics.request(scope["path"], status, time.perf_counter() - began)

    def _refusal(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        if scope["path"] in OPEN:
            return None
        headers = dict(scope["headers"])
        if self._keys:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = [hmac.compare_digest(given.strip(), key) for key in self._keys]  # each, so that time tells nothing
            if scheme.lower() != b"bearer" or not any(known):
                return problem(401, "give a valid key: Authorization: Bearer KEY", **{"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body_bytes:
            return problem(413, self._too_large())
        if self._running > self._limits.waiting:
            return problem(503, "the server is busy; try again", **{"Retry-After": "1"})
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Count a body that states no length."""
        total = 0

        async def counting() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._limits.body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return counting

    def _too_large(self) -> str:
        return f"the body is larger than {self._limits.body_bytes} bytes; send fewer or smaller images"


def read_keys(path: Path) -> list[str]:
    """The keys of a file; empty lines and lines that begin with # are passed over.

    Raises:
        UserError: there is none, or one has a space in it.
    """
    lines = [line.strip() for line in text_lines(read_text(path, "give a file with one key per line"))]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"--api_keys {path}: holds no key; write one per line")
    if any(not key.isascii() or " " in key for key in keys):
        raise UserError(f"--api_keys {path}: a key has a space or a special character; use letters and digits")
    return keys
