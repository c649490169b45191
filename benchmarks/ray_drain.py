"""Whether Ray Serve answers every request while its replicas are replaced, lost and stopped.

python benchmarks/ray_drain.py --replicas 2 --clients 20      # needs pip install 'vlkit[scale]'

Clients embed one text at a time without a pause. Meanwhile the application is deployed again (Ray replaces one replica
after another), then with one replica, then that one is killed by SIGKILL, and at last Serve is shut down. Each step
prints what the clients got.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.cli.config import run
from vlkit.errors import UserError, needs
from vlkit.serving.api import listen

with needs("scale", "Ray Serve"):
    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    from vlkit.serving.ray_serve import Arguments, app


@dataclass
class Config:
    """Count the requests that fail while replicas of Ray Serve stop."""

    base: str = "tiny"
    """Base that embeds."""
    replicas: int = 2
    """Replicas at the start."""
    clients: int = 20
    """Clients that ask at once."""
    seconds: float = 10.0
    """How long they go on asking after each step."""

    def __post_init__(self) -> None:
        for name in ("replicas", "clients"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")


@dataclass
class Asked:
    """What clients got during one step."""

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    seconds: float = 0.0


def main(config: Config) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    cpus = 0.9 / config.replicas  # room for a replica beside those that it replaces
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        address = f"http://127.0.0.1:{port}"

        def deploy(replicas: int) -> None:
            arguments = Arguments.model_validate({"base": config.base, "replicas": replicas, "cpus": cpus})
            serve.run(app(arguments), name="vlkit")

        deploy(config.replicas)
        steps: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "deployed_again": lambda: deploy(config.replicas),
            "one_replica": lambda: deploy(1),
            "replica_killed": kill_a_replica,
            "shut_down": serve.shutdown,
        }
        for name, step in steps.items():
            print(json.dumps({"while": name, **vars(asked(config, address, step))}), flush=True)
    finally:
        ray.shutdown()


def asked(config: Config, address: str, step: Callable[[], Any]) -> Asked:
    """What clients get while ``step`` runs, and for some seconds after it."""
    import httpx

    found, lock, over = Asked(), threading.Lock(), threading.Event()

    def client(number: int) -> None:
        with httpx.Client(base_url=address, timeout=300) as to:
            while not over.is_set():
                began = time.monotonic()
                try:
                    status = to.post("/v1/embeddings", json={"input": f"a red square {number}"}).status_code
                    said = "" if status == 200 else f"status {status}"
                except httpx.HTTPError as error:
                    said = f"{type(error).__name__}"
                with lock:
                    found.answered += not said
                    found.failed += Counter([said] if said else [])
                    found.longest = max(found.longest, round(time.monotonic() - began, 2))
                if said:
                    time.sleep(0.1)  # as a client that tries again

    threads = [threading.Thread(target=client, args=(number,)) for number in range(config.clients)]
    for thread in threads:
        thread.start()
    time.sleep(min(2.0, config.seconds))
    began = time.monotonic()
    step()
    found.seconds = round(time.monotonic() - began, 1)
    time.sleep(config.seconds)
    over.set()
    for thread in threads:
        thread.join()
    return found


def kill_a_replica() -> None:
    """SIGKILL to a process of this user's that Ray calls a replica of vlkit."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = file.read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if title.startswith("ray::ServeReplica:vlkit"):
            print(f"killed {title.strip(chr(0))}", file=sys.stderr, flush=True)
            os.kill(int(file.parent.name), signal.SIGKILL)
            return
    raise RuntimeError("no replica is running")


if __name__ == "__main__":
    run(main, Config)
