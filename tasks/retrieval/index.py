"""Index a folder of images for search; run again to bring the index up to date.

    python tasks/retrieval/index.py --model runs/retrieval/… --images FOLDER --index IDX

Unchanged images are skipped, removed ones dropped; embeddings made before a crash or Ctrl-C are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Progress
from vlkit.data.images import open_image
from vlkit.errors import UserError
from vlkit.files import sha256_of
from vlkit.index import IndexWriter, VectorIndex
from vlkit.index.media import image_items
from vlkit.index.source import IndexSource, wanted
from vlkit.index.update import update_index
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import load_zero_shot
from vlkit.tasks.retrieval.task import TASK


@dataclass
class Config:
    """Index a folder of images for search."""

    images: Path
    """Folder of images, including sub-folders."""
    index: Path
    """Index folder, created if missing."""
    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Base to embed with, without an adapter."""
    factory: str | None = None
    """FAISS factory string: Flat (exact, the default of a new index), HNSW32, IVF256,Flat, IVF1024,PQ32, …"""
    strict: bool = False
    """Stop at an image that cannot be read, instead of skipping and listing it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME")
    found = wanted("images", config.images, config.index)
    pipeline = (
        load(config.model, config.device, task=TASK.name)
        if config.model
        else load_zero_shot(config.base, config.device)
    )
    console = Console(stderr=True)
    with IndexWriter.open(config.index, pipeline.dim, pipeline.identity, config.factory) as writer:
        IndexSource("images", config.images, config.model, config.base).write(config.index)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("embed images")
            update = update_index(
                writer,
                image_items(found),
                read=lambda item: open_image(config.images / item.id),
                embed=pipeline.embed_images,
                digest=lambda item: sha256_of(config.images / item.id),
                strict=config.strict,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    for error in update.bad:
        console.print(f"left out: {error}")
    index = VectorIndex.open(config.index, pipeline.identity)
    exact = "" if index.factory == "Flat" else f"; finds {100 * index.recall_against_exact():.1f} % of the exact top 10"
    Console().print(
        f"{config.index}: {len(index)} images ({update.new} new, {update.changed} changed, "
        f"{update.unchanged} unchanged, {update.removed} removed, {len(update.bad)} unreadable), "
        f"{index.factory} index{exact}"
    )
    if found.note():
        print(f"note: {found.note()}")


if __name__ == "__main__":
    run(main, Config)
