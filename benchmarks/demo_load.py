"""Load test of a running demo: time of concurrent searches, and whether each gets its own answer.

    python demos/app.py --port 7860 &
    python benchmarks/demo_load.py --url http://127.0.0.1:7860 --requests 50

Every query runs alone first; then all queries run at the same time, and the answers are compared. Prints JSON.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio_client import Client

from vlkit.cli.config import run
from vlkit.drawn.album import demo_album
from vlkit.errors import UserError
from vlkit.files import write_json

TOLERANCE = 1e-4
"""Largest allowed difference of a score: padding of a text in a batch with longer texts changes the last bits."""
TIMEOUT = 120
"""Seconds to wait for any single byte of an answer."""


@dataclass
class Config:
    """Send concurrent searches to a running demo."""

    url: str = "http://127.0.0.1:7860"
    """URL of the demo."""
    requests: int = 50
    """Number of concurrent searches."""
    pid: int | None = None
    """Process id of the demo, to report its memory (Linux)."""
    json: Path | None = None
    """Also write the results to this JSON file."""

    def __post_init__(self) -> None:
        if not 1 <= self.requests <= 500:
            raise UserError(f"--requests {self.requests}: must be from 1 to 500")


def main(config: Config) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    patience = {"timeout": TIMEOUT}  # the library's 5 s are too short where all requests share two busy cores
    try:
        client = Client(config.url, verbose=False, max_workers=config.requests, httpx_kwargs=patience)
    except Exception as error:  # the client raises errors of several libraries
        raise UserError(f"--url {config.url}: no demo answers at this URL ({error})") from None
    captions = [caption for image in demo_album().about_images for caption in image.captions]
    queries = [captions[i % len(captions)] for i in range(config.requests)]
    alone = [timed(client, query) for query in queries]
    with ThreadPoolExecutor(config.requests) as pool:
        together = list(pool.map(lambda query: timed(client, query), queries))
    times = sorted(seconds for seconds, _ in together)
    figures = {
        "requests": config.requests,
        "failed": sum(isinstance(answer, Exception) for _, answer in together),
        "failures": sorted({f"{type(a).__name__}: {a}" for _, a in together if isinstance(a, Exception)}),
        "differing": sum(not same(a, b) for (_, a), (_, b) in zip(alone, together, strict=True)),
        "alone_median_s": round(statistics.median(seconds for seconds, _ in alone), 4),
        "together_median_s": round(statistics.median(times), 4),
        "together_p95_s": round(times[min(len(times) - 1, int(0.95 * len(times)))], 4),
        "server_rss_mib": None if config.pid is None else resident_mib(config.pid),
    }
    if config.json:
        write_json(config.json, figures)
    print(json.dumps(figures))


def timed(client: Client, query: str) -> tuple[float, Any]:
    """Seconds and answer of a search; the answer is the exception if it fails."""
    start = time.perf_counter()
    try:
        answer = client.predict(query, 10, api_name="/search")
    except Exception as error:  # counted as a failed request
        answer = error
    return time.perf_counter() - start, answer


def same(a: Any, b: Any) -> bool:
    """Whether two answers list the same images with the same scores; images with equal scores may swap."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return False
    first, second = a["results"], b["results"]
    return len(first) == len(second) and all(
        abs(x["score"] - y["score"]) < TOLERANCE
        and (x["picture"] == y["picture"] or any(abs(x["score"] - z["score"]) < TOLERANCE for z in first if z is not x))
        for x, y in zip(first, second, strict=True)
    )


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process in MiB; None if it cannot be read."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


if __name__ == "__main__":
    run(main, Config)
