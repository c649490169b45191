"""How long the web demo takes from its start to its first answer.

    python benchmarks/demo_start.py              # thrice with what an earlier start has left in the cache
    python benchmarks/demo_start.py --first true # thrice with an empty cache: the demo images are drawn

Prints the seconds until the demo says its address, and until a search is answered, the client's set-up included.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gradio_client import Client

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.drawn.album import demo_album
from vlkit.errors import UserError
from vlkit.files import cache_folder

APP = Path(__file__).parents[1] / "demos" / "app.py"


@dataclass
class Config:
    """Time the start of the web demo."""

    first: bool = False
    """Start with an empty cache."""
    repeats: int = 3
    """Starts."""


def main(config: Config) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    query = demo_album().about_images[0].captions[0]
    table = Table("start", "ready, s", "first answer, s")
    for number in range(config.repeats):
        with tempfile.TemporaryDirectory() as empty:
            ready, answered = start(empty if config.first else str(cache_folder()), query)
        table.add_row(str(number + 1), f"{ready:.1f}", f"{answered:.1f}")
    Console().print(table)


def start(cache: str, query: str) -> tuple[float, float]:
    """Start the demo with a cache folder; seconds until it is ready, and until it has answered a query."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, str(APP), "--port", str(port)]
    given = {"env": {**os.environ, "VLKIT_CACHE": cache}, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **given) as demo:
        try:
            if demo.stdout is None or not any("the demo is at" in line for line in demo.stdout):
                raise UserError(f"{APP} ended before it was ready; run it to see why")
            ready = time.perf_counter() - began
            Client(f"http://127.0.0.1:{port}", verbose=False).predict(query, api_name="/search")
            return ready, time.perf_counter() - began
        finally:
            demo.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    run(main, Config)
