"""Embed folders or shards of images: one part of vectors per shard, in any number of processes.

    python tasks/retrieval/embed.py --model runs/retrieval/… --input "shards/{000..099}.tar" --output EMB
    torchrun --nproc_per_node 8 tasks/retrieval/embed.py … --runner torchrun
    python tasks/retrieval/embed.py … --runner ray --actors 16

Parts that exist are skipped, so the same command goes on after a crash, and further machines may join with it.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, MofNCompleteColumn, Progress, visible
from vlkit.data.shards import SLICE, Shard, find_shards
from vlkit.errors import UserError
from vlkit.extract import Options, Parts, Share, Summary, embed_shards
from vlkit.tasks.retrieval.extraction import ImageTower, open_tower

log = logging.getLogger(__name__)


@dataclass
class Config:
    """Embed folders or shards of images."""

    input: list[str] = field(default_factory=list)
    """Folder of images or of shards, or shard files: WebDataset tars or parquet, with ranges such as
    shards/{000..099}.tar."""
    output: Path = Path("embeddings")
    """Folder for the parts: part-*.npy (float16 vectors) and part-*.parquet (ids, sizes, hashes, errors)."""
    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Base to embed with, without an adapter."""
    runner: Literal["local", "torchrun", "ray"] = "local"
    """Who does the work. local: this process, or its share where torchrun or a Slurm job array started several;
    torchrun: the same, and it is an error if no launcher did; ray: actors of Ray Data (pip install "vlkit[scale]")."""
    actors: int = 0
    """Actors of the ray runner; 0 = one per GPU of the cluster, without GPUs one per 4 CPUs."""
    image_column: str = "image"
    """Column of parquet files that holds the images: bytes, or a struct with a field bytes."""
    shard_size: int = SLICE
    """Images of a folder per part."""
    batch_size: int = 64
    """Images per batch."""
    threads: int = 4
    """Threads that decode images, per process."""
    draft: bool = True
    """Decode JPEGs that are much larger than the base's input at a half, a quarter or an eighth of their size, never
    below twice the input: faster, embeddings differ a little; false = at full size."""
    ahead: int = 256
    """Images that wait for a batch at most, per process; with four batches, the bound of the memory."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("--input: is missing; give a folder of images or shards")
        if (self.model is None) == (self.base is None):
            raise UserError("give either --model DIR (a saved adapter) or --base NAME")
        for name in ("shard_size", "batch_size", "threads", "ahead"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.actors < 0:
            raise UserError(f"--actors {self.actors}: must be 0 or more")


def main(config: Config) -> None:
    share = Share.of(os.environ)
    if config.runner == "torchrun" and share is None:
        raise UserError("--runner torchrun: no launcher started this process; put torchrun or srun before the command")
    shards = find_shards(config.input, config.image_column, config.shard_size)
    (share or Share()).stand_alone()
    tower = open_tower(config.model, config.base, config.device, config.draft)
    source = {"model": _absolute(config.model), "base": config.base, "images": _folder(config.input, shards)}
    parts = Parts.open(config.output, tower.identity, tower.dim, source)
    if shards[0].files and (share is None or share.rank == 0):
        parts.forget_slices(shards, source)
    mine = shards if share is None or config.runner == "ray" else share.take(shards)
    began = time.monotonic()
    done = _embed(config, mine, tower, parts)
    report(config.output, len(parts.names()), len(shards), done, time.monotonic() - began)


def _embed(config: Config, shards: Sequence[Shard], tower: ImageTower, parts: Parts) -> Summary:
    """Run the shards, with a bar on a terminal and a line per part elsewhere."""
    options = Options(config.batch_size, config.threads, config.ahead, pin=tower.on_cuda)
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("embed shards", total=len(shards))
        images = 0

        def progress(count: int, shard: Shard | None) -> None:
            nonlocal images
            images += count
            bar.update(task, advance=shard is not None, description=f"embed shards, {images:,} images")
            if shard is not None and not console.is_terminal:
                log.info("%s: whole, %d images so far", visible(shard.name), images)

        if config.runner != "ray":
            return embed_shards(shards, tower, parts, options, progress)
        from vlkit.extract.ray_runner import embed_with_ray

        # With paths from the root: actors run in another folder.
        model = config.model.absolute() if config.model and config.model.exists() else config.model
        device = "cuda" if tower.on_cuda else "cpu"
        opener = functools.partial(open_tower, model, config.base, device, config.draft)
        shards = [Shard(s.name, s.path.absolute(), s.files, s.column) for s in shards]
        return embed_with_ray(shards, opener, parts, options, config.actors, float(tower.on_cuda), progress)


def report(output: Path, whole: int, total: int, done: Summary, seconds: float) -> None:
    """Say what was done, what is missing, and the first errors."""
    for error in done.errors:
        log.info("left out: %s", visible(error))
    if done.unreadable > len(done.errors):
        log.info("and %d more; the column error of the parquet files has all", done.unreadable - len(done.errors))
    speed = (done.images + done.unreadable) / seconds if seconds else 0.0
    Console().print(
        f"{output}: {whole} of {total} parts are whole ({done.written} new, {done.skipped} skipped); "
        f"{done.images} images embedded, {done.unreadable} unreadable, {speed:.1f} images per second"
    )
    if whole < total:
        print("note: run the same command again for the parts that other processes have not finished")


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _folder(inputs: Sequence[str], shards: Sequence[Shard]) -> str:
    """The folder below which the ids of the images lie."""
    if shards[0].files:
        return str(Path(inputs[0]).absolute())
    return os.path.commonpath([shard.path.absolute().parent for shard in shards])


if __name__ == "__main__":
    run(main, Config)
