"""Index a folder of images for search; run again to bring the index up to date.

    python tasks/retrieval/index.py --model runs/retrieval/… --images FOLDER --index IDX
    python tasks/retrieval/index.py --index IDX --duplicates
    python tasks/retrieval/index.py --embeddings EMB --index IDX               # parts of embed.py, searched on disk

Unchanged images are skipped, removed ones dropped; embeddings made before a crash or Ctrl-C are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.config import about, run
from vlkit.cli.show import Console, Progress, Table
from vlkit.data.images import open_image
from vlkit.errors import UserError
from vlkit.extract import Parts
from vlkit.files import write_json
from vlkit.index import IndexWriter, VectorIndex
from vlkit.index.approximate import auto_factory
from vlkit.index.disk import index_embeddings
from vlkit.index.duplicates import duplicate_groups
from vlkit.index.files import DISK_POINTER
from vlkit.index.media import image_items, media_digest
from vlkit.index.source import IndexSource, wanted
from vlkit.index.update import describe_items, update_index
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.evaluate import calibrated_search
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot
from vlkit.tasks.retrieval.task import TASK

NEAR = 0.98
"""Cosine of near-duplicates if ``--duplicates`` names none."""


@dataclass
class Config:
    """Index a folder of images for search."""

    index: Path
    """Index folder, created if missing."""
    images: Path | None = None
    """Folder of images, including sub-folders; may be left out with --duplicates."""
    embeddings: Path | None = None
    """Folder written by embed.py, instead of --images: its vectors stay there and are searched on disk."""
    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Base to embed with, without an adapter."""
    factory: str | None = None
    """FAISS factory string: Flat (exact, the default of a new index), HNSW32, IVF256,Flat, IVF1024,PQ32, …; auto: Flat
    up to 50,000 images, then IVF with a number of clusters that fits. With --embeddings: Flat up to 3 million vectors,
    beyond an IVF on disk, unless Flat or IVF… is given."""
    calibrate: Path | None = None
    """Prepared dataset on whose validation split the threshold of search.py --min_score auto is measured. An adapter
    has one from its training."""
    captions: Path | None = None
    """Run or adapter folder of task captioning: its caption of each image is stored, shown by search.py and written to
    its JSON. Images that have one by the same adapter keep it; later runs without this flag keep all."""
    duplicates: bool | float = False
    """List groups of near-identical images: equal files, or a cosine of at least this value (0.98 if none is given)."""
    json: Path | None = None
    """Write the groups of --duplicates to this file."""
    draft: bool = True
    """Decode JPEGs that are much larger than the base's input at a half, a quarter or an eighth of their size, never
    below twice the input: faster, embeddings differ a little; false = at full size."""
    strict: bool = False
    """Stop at an image that cannot be read, instead of skipping and listing it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if self.images is None and self.embeddings is None and self.duplicates is False:
            raise UserError(
                "give --images FOLDER or --embeddings DIR (written by embed.py) to index, or --duplicates to compare "
                "the images of an index"
            )
        if self.images is not None and (self.model is None) == (self.base is None):
            raise UserError("give either --model DIR (a saved adapter) or --base NAME")
        if self.duplicates is not False and not 0 < self.duplicates <= 1:
            raise UserError(f"--duplicates {self.duplicates}: a cosine above 0, at most 1; near-duplicates have {NEAR}")
        if self.duplicates is not False and self.embeddings is not None:
            raise UserError("--duplicates: compares an index of --images; leave --embeddings out")
        if self.captions is not None and self.images is None:
            raise UserError("--captions: give --images too, the folder whose images are captioned")
        if self.json is not None and self.duplicates is False:
            raise UserError("--json: the file holds the groups of --duplicates; add that flag")


def main(config: Config) -> None:
    if config.embeddings is not None:
        from_embeddings(config, config.embeddings)
    elif config.images is not None:
        update(config, config.images)
    if config.duplicates is not False:
        show_duplicates(config, NEAR if config.duplicates is True else float(config.duplicates))


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


def update(config: Config, images: Path) -> None:
    """Bring the index up to date with a folder."""
    found = wanted("images", images, config.index)
    pipeline = open_pipeline(config)
    factory = auto_factory(len(found.names)) if config.factory == "auto" else config.factory
    console = Console(stderr=True)
    with IndexWriter.open(config.index, pipeline.dim, pipeline.identity, factory) as writer:
        source = IndexSource("images", images, config.model, config.base, threshold(config, pipeline))
        source.write(config.index)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("embed images")
            update = update_index(
                writer,
                image_items(found),
                read=lambda item: pipeline.transform(images / item.id, config.draft),
                embed=pipeline.embed_pixels,
                digest=lambda item: media_digest(images / item.id),
                strict=config.strict,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        captioned = add_captions(config, writer, images, console) if config.captions else ""
    for error in update.bad:
        console.print(f"left out: {error}")
    index = VectorIndex.open(config.index, pipeline.identity)
    exact = "" if index.factory == "Flat" else f"; finds {100 * index.recall_against_exact():.1f} % of the exact top 10"
    Console().print(
        f"{config.index}: {len(index)} images ({update.new} new, {update.changed} changed, "
        f"{update.unchanged} unchanged, {update.removed} removed, {len(update.bad)} unreadable), "
        f"{index.factory} index{exact}{captioned}"
    )
    if found.note():
        print(f"note: {found.note()}")


def add_captions(config: Config, writer: IndexWriter, images: Path, console: Console) -> str:
    """Caption the images that have no caption by this adapter; returns how many, as a part of a sentence."""
    with about("--captions"):
        captioner = load(config.captions, config.device, task="captioning")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("caption images")
        added = describe_items(
            writer,
            captioner.identity,
            read=lambda item: open_image(images / item.id),
            describe=captioner.caption_all,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return f"; {added} captions added"


def open_pipeline(config: Config) -> RetrievalPipeline:
    """The saved adapter, or the base alone."""
    if config.model:
        return load(config.model, config.device, task=TASK.name)
    assert config.base is not None  # the config has checked that one of the two was given
    return load_zero_shot(config.base, config.device)


def threshold(config: Config, pipeline: RetrievalPipeline) -> float | None:
    """The threshold that ``--calibrate`` asks for, or the one the index has."""
    if config.calibrate is None:
        known = (config.index / "source.json").exists()
        return IndexSource.read(config.index, "images").min_score if known else None
    with about("--calibrate"):
        found = calibrated_search(pipeline.embedder, TASK.dataset(config.calibrate), "val")
    Console().print(
        f"min_score {found['min_score']:.4f}: best F1 ({found['f1']:.1f} %) on {found['images']} images of "
        f"{found['data']}/val; precision {found['precision']:.1f} %, recall {found['recall']:.1f} %"
    )
    return found["min_score"]


def show_duplicates(config: Config, threshold: float) -> None:
    """Print the groups of near-identical images, and write them to ``--json``."""
    if (config.index / DISK_POINTER).exists():
        raise UserError(f"--duplicates: {config.index} is an index on disk (of embeddings); give one of --images")
    with about("--index"):
        folder = IndexSource.read(config.index, "images").folder
        index = VectorIndex.open(config.index)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compare images")
        groups = duplicate_groups(
            index.items,
            index.vectors,
            threshold,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    listed: list[list[dict[str, Any]]] = [
        [{"image": str(folder / c.item.id), "score": round(c.score, 6), "identical": c.identical} for c in group]
        for group in groups
    ]
    if config.json:
        write_json(config.json, {"threshold": threshold, "groups": listed})
    extra = sum(len(group) - 1 for group in listed)
    title = f"{len(listed)} groups with {extra} near-duplicates of {len(index)} images (cosine >= {threshold:g})"
    table = Table("group", "score", "image", title=title)
    for number, group in enumerate(listed, start=1):
        for copy in group:
            first = copy is group[0]
            mark = "" if first else "identical" if copy["identical"] else f"{copy['score']:.3f}"
            table.add_row(str(number) if first else "", mark, copy["image"])
    Console().print(table if listed else title)


if __name__ == "__main__":
    run(main, Config)
