"""Serve a retrieval model over HTTP: OpenAI-style embeddings of texts and images, and search.

    python tasks/retrieval/serve.py --model runs/retrieval/… --index IDX --port 8000 --api_keys KEYS.txt

Paths: /v1/embeddings, /v1/models, /search, /healthz, /metrics. Stops gracefully on SIGTERM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.errors import UserError, needs


@dataclass
class Config:
    """Serve a retrieval model over HTTP."""

    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Base to serve, without an adapter."""
    index: Path | None = None
    """Index folder for /search, made by the same model."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 = every network of this machine."""
    port: int = 8000
    """Port; 0 = any free one."""
    api_keys: Path | None = None
    """File with the accepted API keys, one per line; default: anyone who reaches the port may ask."""
    max_body: int = 32
    """Largest request, in MiB."""
    max_inputs: int = 256
    """Most inputs per request."""
    max_waiting: int = 256
    """Requests at once; further ones are answered with 503."""
    drain_seconds: float = 5.0
    """After SIGTERM, time in which /healthz says 503 while requests are still answered."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.base is None):
            raise UserError("give either --model DIR (a saved adapter) or --base NAME")
        for name in ("max_body", "max_inputs", "max_waiting"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        if not 0 <= self.drain_seconds <= 3600:
            raise UserError(f"--drain_seconds {self.drain_seconds}: must be from 0 to 3600")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: must be from 0 to 65535")


def main(config: Config) -> None:
    with needs("serve", "vlkit serve"):
        from vlkit.serving.api import Limits, listen, make_app, open_service, read_keys, serve
    keys = read_keys(config.api_keys) if config.api_keys else []
    opened = listen(config.host, config.port)
    service = open_service(config.model, config.base, config.index, config.device)
    limits = Limits(config.max_body * 2**20, config.max_inputs, config.max_waiting)
    app = make_app(service, limits, keys)
    host = f"[{config.host}]" if ":" in config.host else config.host
    found = "" if service.index is None else f", {len(service.index)} items to search"
    guarded = f"{len(keys)} keys" if keys else "no key needed"
    Console().print(f"{service.pipeline.name} at http://{host}:{opened.getsockname()[1]} ({guarded}{found})")
    serve(app, opened, config.drain_seconds)


if __name__ == "__main__":
    run(main, Config)
