"""Serve a classifier as a black box over HTTP: images in, class scores out (see :mod:`vlkit.serving.black_box`)."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vlkit.data.images import to_rgb
from vlkit.errors import UserError

Score = Callable[[list[Image.Image]], "np.ndarray | Tensor"]
"""RGB images -> scores [B, C]."""
LARGEST_BODY = 64 * 2**20
MOST_IMAGES = 256
LARGEST_IMAGE = 2**24
"""Pixels."""


class ScoreServer(ThreadingHTTPServer):
    """``GET /`` tells the classes, ``POST /`` scores images. Wrong requests get 400 with a reason, and never a crash.

    Args:
        score: scores a batch; called by one thread at a time.
        classes: names of the classes.
        size: height and width of the images that the model reads.
        host, port: address; port 0 = any free one (``server_port``).
    """

    daemon_threads = True

    def __init__(
        self, score: Score, classes: Sequence[str], size: tuple[int, int], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); choose another") from None
        self.about = {"classes": list(classes), "size": list(size)}
        self._score, self._one = score, threading.Lock()

    def answer(self, request: Any) -> dict[str, Any]:
        """Scores for a request body.

        Raises:
            UserError: the request is not ``{"images": [base64, …]}``.
        """
        files = request.get("images") if isinstance(request, dict) else None
        if not isinstance(files, list) or not 0 < len(files) <= MOST_IMAGES:
            raise UserError(f'give {{"images": [base64 of an image file, …]}} with 1 to {MOST_IMAGES} images')
        images = [_image(file, number) for number, file in enumerate(files)]
        with self._one:
            scores = self._score(images)
        return {"scores": [[float(score) for score in row] for row in scores]}


def _image(file: Any, number: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(file, validate=True)))
        if image.width * image.height > LARGEST_IMAGE:
            raise ValueError(f"{image.width} x {image.height} pixels")
        return to_rgb(image)
    except Exception as error:  # Pillow's readers raise errors of many kinds for damaged files
        raise UserError(f"image {number}: cannot be read ({' '.join(str(error).split())[:80]})") from None


class _Handler(BaseHTTPRequestHandler):
    server: ScoreServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Classes and image size."""
        self._send(200, self.server.about)

    def do_POST(self) -> None:
        """Scores."""
        try:
            size = int(self.headers.get("Content-Length") or -1)
        except ValueError:
            size = -1
        if not 0 <= size <= LARGEST_BODY:
            self.close_connection = True
            self._send(413 if size > 0 else 411, {"error": f"give a body of at most {LARGEST_BODY >> 20} MiB"})
            return
        try:
            self._send(200, self.server.answer(json.loads(self.rfile.read(size))))
        except (UserError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            self._send(400, {"error": " ".join(str(error).split())[:200]})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
