"""What growing costs on this machine: embedding, snapshots, search on disk, and serving.

python benchmarks/scale.py embed                       # images per second through shards, CPU seconds per image
python benchmarks/scale.py snapshot --size 20          # what a snapshot of 20 MiB takes from training
python benchmarks/scale.py search --count 200000       # memory, time and recall of both kinds of index on disk
python benchmarks/scale.py serve --seconds 60          # latency and throughput beside the pipeline itself, and SIGTERM
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import re
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vlkit.cli.config import positional, run
from vlkit.data.shards import Shard, find_shards
from vlkit.engine import checkpoint
from vlkit.engine.distributed import make_fabric
from vlkit.engine.snapshots import Snapshots
from vlkit.engine.state import RunState
from vlkit.extract import Parts, embed_shards
from vlkit.extract.parts import Row
from vlkit.index.disk import DiskIndex, index_embeddings
from vlkit.tasks.retrieval.extraction import open_tower
from vlkit.tasks.retrieval.pipeline import load_zero_shot

MIB = 2**20
SCRIPTS = Path(__file__).parents[1] / "tasks"


@dataclass
class Config:
    """Measure what growing costs on this machine."""

    what: Literal["embed", "snapshot", "search", "serve"] = positional()
    """What to measure."""
    base: str = "tiny"
    """Base that embeds."""
    count: int = 0
    """Images (default 512) or vectors (default 100,000)."""
    size: int = 20
    """MiB of trained tensors and optimizer state in a snapshot."""
    dim: int = 512
    """Width of the vectors that are searched."""
    clients: int = 50
    """Clients that ask at once."""
    seconds: float = 20.0
    """How long they ask."""


def main(config: Config) -> None:
    measure = {"embed": embed, "snapshot": snapshot, "search": search, "serve": serve}[config.what]
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"what": config.what, **measure(config, Path(folder))}))


def embed(config: Config, folder: Path) -> dict[str, Any]:
    """JPEG images of 320 x 240 in tars of 128, to parts."""
    random, count = np.random.default_rng(0), config.count or 512
    for start in range(0, count, 128):
        with tarfile.open(folder / f"{start // 128:03d}.tar", "w") as archive:
            for number in range(start, min(start + 128, count)):
                file = io.BytesIO()
                small = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
                small.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG")
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = len(file.getvalue())
                archive.addfile(info, io.BytesIO(file.getvalue()))
    tower = open_tower(None, config.base, "auto")
    parts = Parts.open(folder / "out", tower.identity, tower.dim)
    wall, cpu = time.perf_counter(), time.process_time()
    done = embed_shards(find_shards([str(folder)]), tower, parts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"images": done.images, "images_per_second": done.images / wall, "cpu_seconds_per_image": cpu / done.images}


def snapshot(config: Config, folder: Path) -> dict[str, Any]:
    """Time that ``take`` holds up training, and that its thread takes beside it."""
    numbers = config.size * MIB // 12  # a weight and two moments of 4 bytes
    weights = {"w": torch.randn(numbers)}
    moments = {"w/exp_avg": torch.randn(numbers), "w/exp_avg_sq": torch.rand(numbers)}
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else folder
    taken = Snapshots(make_fabric("cpu"), memory, f"bench-{folder.name}", every=1)
    held, held_cpu, written = [], [], []
    for step in range(20):
        began, cpu = time.perf_counter(), time.thread_time()
        taken.take(checkpoint.State(weights, {}, moments, RunState(step=step)))
        held.append(time.perf_counter() - began)
        held_cpu.append(time.thread_time() - cpu)
        assert taken._pending is not None
        taken._pending.result()
        written.append(time.perf_counter() - began)
    taken.close()
    times = {"held_ms": held, "held_cpu_ms": held_cpu, "until_written_ms": written}
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


def search(config: Config, folder: Path) -> dict[str, Any]:
    """Clustered unit vectors in parts of 10,000; each index is opened in a process of its own."""
    count, random = config.count or 100_000, np.random.default_rng(0)
    centres = random.normal(size=(max(16, count // 500), config.dim)).astype(np.float32)
    parts = Parts.open(folder / "emb", "clusters", config.dim)
    for start in range(0, count, 10_000):
        vectors = clustered(random, centres, min(10_000, count - start))
        rows = [Row(f"{start + place}") for place in range(len(vectors))]
        parts.write(Shard(f"{start:09d}", Path("none")), rows, vectors)
    queries = clustered(random, centres, 100)
    lists = f"IVF{2 ** round(np.log2(4 * count**0.5))},RaBitQ"
    found: dict[str, Any] = {}
    for kind, factory in (("flat", "Flat"), ("ivf", lists)):
        built = alone(_built, parts.path, folder / kind, factory)
        found[kind] = {**built, **alone(_searched, folder / kind, queries)}
    exact, near = (found[kind].pop("rows") for kind in ("flat", "ivf"))
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, near, strict=True)])
    size = sum(file.stat().st_size for file in (folder / "ivf").glob("ivf-*"))
    vectors_mib = count * config.dim * 4 / MIB
    pointer = json.loads((folder / "ivf" / "disk.json").read_text(encoding="utf-8"))
    found["ivf"] |= {name: pointer[name] for name in ("nprobe", "refined")}
    return {
        **{"vectors": count, "float32_mib": vectors_mib, "lists": lists, "list_bytes_per_vector": size / count},
        **{"recall@10": float(shared), **found},
    }


def alone(measure: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """What ``measure`` sends from a process of its own, so that its memory is its own."""
    to, sent = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=measure, args=(*arguments, sent))
    child.start()
    sent.close()  # so that a child that fails ends the wait
    found = to.recv()
    child.join()
    return found


def _built(embeddings: Path, folder: Path, factory: str, to: Any) -> None:
    before, cpu = resident(), time.process_time()
    index_embeddings(Parts.read(embeddings), folder, factory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    to.send({"build_peak_mib": peak / MIB, "build_cpu_seconds": time.process_time() - cpu})


def clustered(random: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors around random centres, float32 [count, D]."""
    vectors = centres[random.integers(len(centres), size=count)]
    vectors = vectors + 0.8 * random.normal(size=vectors.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _searched(folder: Path, queries: np.ndarray, to: Any) -> None:
    before = resident()
    index = DiskIndex.open(folder)
    opened = resident() - before
    index.search_rows(queries[:1], 10)
    cpu = time.process_time()
    rows = np.concatenate([index.search_rows(query[None], 10)[1] for query in queries])
    cpu = (time.process_time() - cpu) / len(queries)
    after = {"open_mib": opened / MIB, "after_search_mib": (resident() - before) / MIB, "cpu_ms_per_query": 1e3 * cpu}
    to.send({**after, "rows": rows})


def resident() -> int:
    """Resident bytes of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def serve(config: Config, folder: Path) -> dict[str, Any]:
    """Clients that embed one text at a time: in the pipeline itself, over HTTP, and while the server is told to end."""
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request
    pipeline = load_zero_shot(config.base)
    inside = ask(config, lambda number: pipeline.embed_texts([f"a red square {number}"]))
    words = [sys.executable, str(SCRIPTS / "retrieval" / "serve.py"), "--base", config.base, "--port", "0"]
    server = subprocess.Popen([*words, "--drain_seconds", "5"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = re.findall(r"http://[\w.:]+", server.stdout.readline())[0]
    limits = httpx.Limits(max_connections=config.clients + 1)
    with httpx.Client(base_url=address, timeout=120, limits=limits) as client:

        def post(number: int) -> None:
            client.post("/v1/embeddings", json={"input": f"a red square {number}"}).raise_for_status()

        outside = ask(config, post)
        draining, answered, failed = threading.Event(), list[int](), list[str]()

        def go_on(number: int) -> None:
            while not draining.is_set():
                try:
                    post(number)
                    answered.append(number)
                except httpx.HTTPError as error:
                    failed.append(str(error))

        threads = [threading.Thread(target=go_on, args=(number,)) for number in range(config.clients)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        server.send_signal(signal.SIGTERM)
        while client.get("/healthz").status_code != 503:  # as a load balancer does
            time.sleep(0.1)
        draining.set()
        for thread in threads:
            thread.join()
    ended = {"answered": len(answered), "failed": len(failed), "exit_code": server.wait(120)}
    return {"clients": config.clients, "http": outside, "pipeline": inside, "sigterm": ended}


def ask(config: Config, call: Callable[[int], Any]) -> dict[str, float]:
    """Call from many threads for a while: requests per second, and percentiles of the time of one."""
    times: list[float] = []
    end = time.monotonic() + config.seconds

    def client(number: int) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            call(number)
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(config.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p95 = (1e3 * float(p) for p in np.percentile(times, [50, 95]))
    return {"requests_per_second": len(times) / config.seconds, "p50_ms": p50, "p95_ms": p95}


if __name__ == "__main__":
    run(main, Config)
