"""Whether every runner of ``vlkit embed`` writes the same parts, whatever is killed meanwhile.

python benchmarks/runners.py --count 10000 --shards 40 --kills 20      # needs pip install 'vlkit[scale]' for Ray

Draws images into tars, with a file that is no image and a tar that is cut off. One process embeds them undisturbed;
then each runner does, while processes of it are killed by SIGKILL: a process alone and one of torchrun are started
again by the same command, actors by Ray. At last a slow model embeds, and the images that wait for it are counted.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vlkit.cli.config import run
from vlkit.data.shards import find_shards
from vlkit.drawn.draw import draw
from vlkit.drawn.scenes import sample_scene
from vlkit.errors import UserError
from vlkit.extract import Options, Parts, embed_shards
from vlkit.tasks.retrieval.extraction import ImageTower, open_tower

EMBED = Path(__file__).parents[1] / "tasks" / "retrieval" / "embed.py"
STARTED_BY = {
    "local": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "ray": [],
}


@dataclass
class Config:
    """Compare the parts that the runners of embed write."""

    count: int = 10_000
    """Images."""
    shards: int = 40
    """Tars."""
    size: int = 64
    """Side of the images in pixels."""
    kills: int = 20
    """SIGKILLs, of all runners together."""
    base: str = "tiny"
    """Base that embeds."""
    output: Path | None = None
    """Folder for tars and parts, to be kept; default: a temporary one."""

    def __post_init__(self) -> None:
        if not 3 <= self.shards <= self.count:
            raise UserError(f"--shards {self.shards}: must be from 3 to --count {self.count}")


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.output or Path(temporary)
        whole = draw_tars(config, folder / "in")
        found: dict[str, Any] = {"images": config.count, "shards": config.shards, "size": config.size}
        found["undisturbed"] = watched(config, folder, "local", "one", 0)
        expected = contents(folder / "one")
        for number, runner in enumerate(STARTED_BY):
            kills = (config.kills + number) // len(STARTED_BY)
            found[runner] = watched(config, folder, runner, runner, kills)
            own = contents(folder / runner)
            differ = [name for name in {*expected, *own} if expected.get(name) != own.get(name)]
            found[runner] |= {"files": len(own), "files_that_differ": len(differ)}
        rows = [row for part in Parts.read(folder / "one") for row in part.table.to_pylist()]
        embedded = {row["id"] for row in rows if not row["error"]}
        found["embedded"] = len(embedded)
        found["lost"] = len(whole - embedded)
        found["errors"] = [f"{row['id']}: {row['error']}" for row in rows if row["error"]]
        found["slow_sink"] = slow_sink(config, folder)
    print(json.dumps(found))


def draw_tars(config: Config, folder: Path) -> set[str]:
    """Draw the images; the ids of those that can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    random, ids = np.random.default_rng(0), set[str]()
    cut = config.shards // 2
    for shard, numbers in enumerate(np.array_split(np.arange(config.count), config.shards)):
        path, ends = folder / f"{shard:03d}.tar", {}
        with tarfile.open(path, "w") as archive:
            for number in numbers:
                file = io.BytesIO()
                draw(sample_scene(random, "demo"), config.size).save(file, "PNG")
                content = b"broken" if number == 1 else file.getvalue()
                info = tarfile.TarInfo(f"{number:06d}.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                if number != 1:
                    ends[f"{path.name}/{info.name}"] = archive.offset
        length = path.stat().st_size
        if shard == cut:
            length = int(0.6 * max(ends.values()))
            os.truncate(path, length)
        ids |= {name for name, end in ends.items() if end <= length}
        say(f"drew {path.name}")
    return ids


def contents(folder: Path) -> dict[str, bytes]:
    """Every part file, in bytes."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.startswith("part-")}


def watched(config: Config, folder: Path, runner: str, name: str, kills: int) -> dict[str, Any]:
    """Run ``embed.py`` until all parts are whole; kill a process at ``kills`` times that are spread over the work."""
    to = folder / name
    command = [sys.executable, *STARTED_BY[runner], str(EMBED), "--base", config.base, "--device", "cpu"]
    command += ["--input", str(folder / "in"), "--output", str(to), "--runner", runner]
    command += ["--actors", "2"] if runner == "ray" else []
    began, starts, done, times = time.monotonic(), 0, False, kills_after(config.shards, kills)
    while not done:
        starts += 1
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            said: list[str] = []
            threading.Thread(target=said.extend, args=(child.stderr,), daemon=True).start()
            killed = False
            while child.poll() is None:
                whole = len(list(to.glob("part-*.parquet")))
                victims = working(child.pid, runner) if times and whole >= times[0] else []
                if victims:
                    os.kill(victims[whole % len(victims)], signal.SIGKILL)
                    say(f"{name}: killed a process after {whole} of {config.shards} parts")
                    times, killed = times[1:], True
                time.sleep(0.1)
            done = child.returncode == 0
            if not done and not killed:
                raise RuntimeError(f"{name} ended by itself: {''.join(said[-20:])}")
    if times:
        raise RuntimeError(f"{name}: {len(times)} kills found no process; use more or larger shards")
    return {"seconds": round(time.monotonic() - began, 1), "kills": kills, "starts": starts}


def kills_after(shards: int, kills: int) -> list[int]:
    """The numbers of whole parts after which a process is killed."""
    return [shards * number // (kills + 1) for number in range(1, kills + 1)]


def working(pid: int, runner: str) -> list[int]:
    """The processes below ``pid`` that embed: itself, torchrun's children, or Ray's actors."""
    if runner == "local":
        return [pid]
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            words = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        parents[int(stat.parent.name)] = (int(fields[1]), words)
    found, below, sign = [], [pid], "ShardWorker" if runner == "ray" else EMBED.name
    while below:
        children = [child for child, (parent, _) in parents.items() if parent in below]
        found += [child for child in children if sign in parents[child][1]]
        below = children
    return sorted(found)


class Counting:
    """A model that counts the images between ``transform`` and the end of ``embed``, which takes long."""

    def __init__(self, tower: ImageTower) -> None:
        self._tower, self.dim, self.identity = tower, tower.dim, tower.identity
        self._lock, self._waiting, self.most = threading.Lock(), 0, 0

    def transform(self, image: Image.Image) -> Tensor:
        with self._lock:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        return self._tower.transform(image)

    def embed(self, pixels: Tensor) -> Tensor:
        time.sleep(0.5)
        vectors = self._tower.embed(pixels)
        with self._lock:
            self._waiting -= len(pixels)
        return vectors


def slow_sink(config: Config, folder: Path) -> dict[str, Any]:
    """How many images wait at most for a model that takes half a second per batch."""
    options, model = Options(batch_size=16, ahead=64), Counting(open_tower(None, config.base, "cpu"))
    some = find_shards([str(folder / "in")])[:3]
    done = embed_shards(some, model, Parts.open(folder / "slow", model.identity, model.dim), options)
    return {
        "images": done.images,
        "batch_size": options.batch_size,
        "ahead": options.ahead,
        "waiting_at_most": model.most,
    }


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, Config)
