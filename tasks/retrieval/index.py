"""Index a folder of images for search; run again to bring the index up to date.

    python tasks/retrieval/index.py --model runs/retrieval/… --images FOLDER --index IDX
    python tasks/retrieval/index.py --embeddings EMB --index IDX               # parts of embed.py, searched on disk

Unchanged images are skipped, removed ones dropped; embeddings made before a crash or Ctrl-C are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import about, run
from vlkit.cli.show import Console, Progress
from vlkit.data.images import open_image
from vlkit.errors import UserError
from vlkit.extract import Parts
from vlkit.files import sha256_of
from vlkit.index import IndexWriter, VectorIndex
from vlkit.index.disk import index_embeddings
from vlkit.index.media import image_items
from vlkit.index.source import IndexSource, wanted
from vlkit.index.update import update_index
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import load_zero_shot
from vlkit.tasks.retrieval.task import TASK


@dataclass
class Config:
    """Index a folder of images for search."""

    index: Path
    """Index folder, created if missing."""
    images: Path | None = None
    """Folder of images, including sub-folders."""
    embeddings: Path | None = None
    """Folder written by embed.py, instead of --images: its vectors stay there and are searched on disk."""
    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Base to embed with, without an adapter."""
    factory: str | None = None
    """FAISS factory string: Flat (exact, the default of a new index), HNSW32, IVF256,Flat, IVF1024,PQ32, …
    With --embeddings: Flat up to 3 million vectors, beyond an IVF on disk, unless Flat or IVF… is given."""
    strict: bool = False
    """Stop at an image that cannot be read, instead of skipping and listing it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    if config.embeddings is not None:
        from_embeddings(config, config.embeddings)
    elif config.images is not None:
        from_images(config, config.images)
    else:
        raise UserError("give --images FOLDER, or --embeddings DIR written by embed.py")


def from_embeddings(config: Config, embeddings: Path) -> None:
    """Index vectors where they are."""
    if config.images or config.model or config.base:
        raise UserError("--embeddings: knows its images and its model; leave out --images, --model and --base")
    with about("--embeddings"):
        parts = Parts.read(embeddings)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("index vectors")
        show = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        index = index_embeddings(parts, config.index, config.factory or "auto", show)
    source = parts.about["source"]
    model = Path(source["model"]) if source.get("model") else None
    IndexSource("images", Path(source.get("images") or ""), model, source.get("base")).write(config.index)
    count = len(parts.names())
    Console().print(f"{config.index}: {len(index)} vectors in {count} parts, {index.factory} index on disk")


def from_images(config: Config, images: Path) -> None:
    """Bring the index up to date with a folder."""
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME")
    found = wanted("images", images, config.index)
    pipeline = (
        load(config.model, config.device, task=TASK.name)
        if config.model
        else load_zero_shot(config.base, config.device)
    )
    console = Console(stderr=True)
    with IndexWriter.open(config.index, pipeline.dim, pipeline.identity, config.factory) as writer:
        IndexSource("images", images, config.model, config.base).write(config.index)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("embed images")
            update = update_index(
                writer,
                image_items(found),
                read=lambda item: open_image(images / item.id),
                embed=pipeline.embed_images,
                digest=lambda item: sha256_of(images / item.id),
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
