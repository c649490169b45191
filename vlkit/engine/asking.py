"""Models that are known by their answers alone: images in, class scores out, no gradients.

Two implementations of :class:`BlackBox`: a model in this process, and one behind HTTP (:class:`HttpBlackBox`). An HTTP
answer may be late, missing or nonsense, and each image asked may cost money: requests are repeated after a pause,
limited in rate, counted against a budget, and an error says what the service did.

The service takes ``POST`` with ``{"images": [base64 of a PNG, …]}`` and answers ``{"scores": [[…], …]}``, one row per
image and one number per class.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlkit.errors import UserError


class BlackBoxError(UserError):
    """The black box gave no usable answer, or the budget is spent; what was learned so far is not lost."""


class BudgetSpent(BlackBoxError):
    """The next request would ask for more images than the budget allows."""


class BlackBox(Protocol):
    """A model behind its answers.

    Attributes:
        asked: images asked so far, failed requests included.
    """

    asked: int

    def scores(self, pixels: Tensor) -> Tensor:
        """Score images.

        Args:
            pixels: [B, 3, H, W] float, 0 .. 1, without gradient.

        Returns:
            Logits [B, C] float32, on the CPU, without gradient.

        Raises:
            BlackBoxError: there is no usable answer.
        """
        ...


class LocalBlackBox:
    """A model in this process behind the same protocol; it refuses to give gradients.

    Args:
        model: normalised pixels [B, 3, H, W] -> logits [B, C].
        mean, std: normalisation of the pixels.
        budget: most images to answer; None = any number.
        eight_bits: round the pixels to 1/255 as an image file would.
        asked: images asked before.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        budget: int | None = None,
        eight_bits: bool = False,
        asked: int = 0,
    ) -> None:
        self._model, self.budget, self.eight_bits, self.asked = model, budget, eight_bits, asked
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def scores(self, pixels: Tensor) -> Tensor:
        """See :class:`BlackBox`."""
        _refuse_gradient(pixels)
        _check_budget(self.asked, len(pixels), self.budget)
        self.asked += len(pixels)
        with torch.no_grad():
            if self.eight_bits:
                pixels = _bytes_of(pixels).to(pixels) / 255
            mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
            return self._model((pixels - mean) / std).detach().float().cpu()


@dataclass
class HttpOptions:
    """How to talk to a black box behind HTTP."""

    url: str = ""
    """Address of the service."""
    timeout: float = 30.0
    """Seconds to wait for an answer."""
    retries: int = 5
    """Times to repeat a request that failed, with a pause that doubles each time."""
    pause: float = 0.5
    """Seconds before the first repetition; a service that says how long to wait is believed."""
    rate: float = 0.0
    """Most images per second; 0 = as fast as the service answers."""
    per_request: int = 32
    """Most images per request."""
    gives: Literal["logits", "probabilities"] = "logits"
    """What the scores are."""
    token_variable: str = ""
    """Environment variable that holds a bearer token for the service."""

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.pause < 0 or self.rate < 0:
            raise UserError("--http: timeout must be above 0, pause and rate 0 or more")
        if self.retries < 0 or self.per_request < 1:
            raise UserError("--http: retries must be 0 or more, per_request at least 1")


class HttpBlackBox:
    """A black box behind HTTP; see the module for the protocol.

    Args:
        options: see :class:`HttpOptions`.
        classes: number of scores per image that the service must give.
        budget: most images to ask for; None = any number.
        asked: images asked before (of a resumed run).
        token: bearer token.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        options: HttpOptions,
        classes: int,
        budget: int | None = None,
        asked: int = 0,
        token: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not options.url.startswith(("http://", "https://")):
            raise UserError(f"--http.url {options.url!r}: give an address that starts with http:// or https://")
        self.options, self.classes, self.budget, self.asked = options, classes, budget, asked
        self._token, self._sleep = token, sleep
        self._free_at, self._lock = 0.0, threading.Lock()

    def scores(self, pixels: Tensor) -> Tensor:
        """See :class:`BlackBox`; pixels are rounded to 1/255."""
        _refuse_gradient(pixels)
        return torch.cat([self._request(part) for part in _bytes_of(pixels).cpu().split(self.options.per_request)])

    def check_classes(self, classes: Sequence[str]) -> None:
        """Compare with the classes that the service names at ``GET``, if it does: their order is that of the scores.

        Raises:
            UserError: it names others, or another order.
        """
        try:
            request = urllib.request.Request(self.options.url, headers=self._headers())
            with urllib.request.urlopen(request, timeout=self.options.timeout) as answer:
                about = json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException):
            return  # the first scores will tell what is wrong
        named = about.get("classes") if isinstance(about, dict) else None
        if isinstance(named, list) and named != list(classes):
            first = next((n for n, (a, b) in enumerate(zip(named, classes, strict=False)) if a != b), None)
            what = f"{len(named)} instead of {len(classes)}" if first is None else f"number {first} is {named[first]!r}"
            raise UserError(f"{self.options.url}: serves other classes than the dataset has ({what}); use its dataset")

    def _headers(self) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return {"Content-Type": "application/json", "Accept": "application/json", **token}

    def _request(self, images: Tensor) -> Tensor:
        """Scores of uint8 images [B, 3, H, W]; repeats what may succeed later."""
        body = json.dumps({"images": [base64.b64encode(_png(image)).decode() for image in images]}).encode()
        pause = self.options.pause
        for left in range(self.options.retries, -1, -1):
            _check_budget(self.asked, len(images), self.budget)
            self._keep_rate(len(images))
            self.asked += len(images)
            try:
                return self._logits(self._send(body), len(images))
            except _TryAgain as problem:
                if not left:
                    raise BlackBoxError(
                        f"{self.options.url}: {problem}, {self.options.retries + 1} times in a row; "
                        "continue later with --resume"
                    ) from None
                self._sleep(pause if problem.wait is None else problem.wait)
                pause *= 2
        raise AssertionError  # the last attempt returned or raised

    def _send(self, body: bytes) -> Any:
        """The answer as JSON.

        Raises:
            _TryAgain: a failure that may pass.
            BlackBoxError: one that will not.
        """
        request = urllib.request.Request(self.options.url, body, self._headers(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.options.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(300).decode(errors="replace").split())[:120]
            what = f"answered {error.code} {error.reason}" + (f" ({said})" if said else "")
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _TryAgain(what, _seconds(error.headers.get("Retry-After"))) from None
            raise BlackBoxError(f"{self.options.url}: {what}; check address, token and format") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise _TryAgain("answered something that is not JSON") from None
        except TimeoutError:
            raise _TryAgain(f"did not answer within {self.options.timeout:g} s") from None
        except (urllib.error.URLError, ConnectionError, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _TryAgain(f"did not answer within {self.options.timeout:g} s") from None
            raise _TryAgain(f"cannot be reached ({reason})") from None
        except http.client.HTTPException as error:
            raise _TryAgain(f"broke off ({type(error).__name__})") from None

    def _logits(self, answer: Any, count: int) -> Tensor:
        """Check an answer and turn it into logits [B, C]."""
        rows = answer.get("scores") if isinstance(answer, dict) else None
        try:
            found = np.asarray(rows, dtype=np.float32)
        except (TypeError, ValueError):
            found = np.empty(0, dtype=np.float32)
        if found.shape != (count, self.classes):
            shape = " x ".join(map(str, found.shape)) if rows is not None else "no"
            raise _TryAgain(f"answered {shape} scores for {count} images of {self.classes} classes")
        if not np.isfinite(found).all():
            raise _TryAgain("answered scores that are not finite")
        if self.options.gives == "probabilities":
            if (found < 0).any() or (found > 1.001).any():
                raise _TryAgain("answered probabilities outside 0 .. 1")
            found = np.log(np.maximum(found, 1e-12))
        return torch.from_numpy(found)

    def _keep_rate(self, count: int) -> None:
        """Wait until ``count`` more images keep the rate."""
        if not self.options.rate:
            return
        with self._lock:
            now = time.monotonic()
            wait, self._free_at = self._free_at - now, max(self._free_at, now) + count / self.options.rate
        if wait > 0:
            self._sleep(wait)


class _TryAgain(Exception):
    """A failure that may pass; ``wait`` = seconds that the service asks for."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


def _refuse_gradient(pixels: Tensor) -> None:
    if pixels.requires_grad:
        raise ValueError("a black box gives no gradients: detach the images")


def _check_budget(asked: int, more: int, budget: int | None) -> None:
    if budget is not None and asked + more > budget:
        raise BudgetSpent(
            f"--budget {budget}: {asked} images were asked, and {more} more are needed; raise it to go on"
        )


def _seconds(text: str | None) -> float | None:
    """``Retry-After`` in seconds, at most two minutes; None if it is missing or a date."""
    try:
        wait = float(text or "")
    except ValueError:
        return None
    return min(wait, 120.0) if math.isfinite(wait) and wait >= 0 else None


def _bytes_of(pixels: Tensor) -> Tensor:
    """Pixels 0 .. 1 -> uint8."""
    return (pixels.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def _png(image: Tensor) -> bytes:
    """[3, H, W] uint8 -> a PNG file; fast rather than small."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()
