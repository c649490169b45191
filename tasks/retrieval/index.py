"""Index a folder of pictures for search; run again to bring the index up to date.

    python tasks/retrieval/index.py --model runs/retrieval/… --images FOLDER --index IDX

Unchanged pictures are skipped, removed ones dropped; what was embedded before a crash or Ctrl-C is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image
from rich.console import Console
from rich.progress import track

from vlkit.config import run
from vlkit.data.images import IMAGE_SUFFIXES, MediaError, open_image
from vlkit.errors import UserError
from vlkit.files import sha256_of, write_json
from vlkit.index import IndexWriter, Item, VectorIndex
from vlkit.pipelines import load
from vlkit.pipelines.retrieval import load_zero_shot

BATCH = 64


@dataclass
class Config:
    """Index a folder of pictures for search."""

    images: Path
    """Folder of pictures, searched with all its sub-folders."""
    index: Path
    """Index folder, made if missing."""
    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Embed with this base alone instead of an adapter."""
    factory: str | None = None
    """FAISS factory string: Flat (exact, the default of a new index), HNSW32, IVF256,Flat, IVF1024,PQ32, …"""
    strict: bool = False
    """Stop at a picture that cannot be read, instead of leaving it out and listing it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def main(config: Config) -> None:
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME")
    items = [item_of(path, config.images) for path in pictures(config.images)]
    if not items:
        raise UserError(f"--images {config.images}: no pictures there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    pipeline = (
        load(config.model, config.device, task="retrieval")
        if config.model
        else load_zero_shot(config.base, config.device)
    )
    console, bad = Console(stderr=True), []
    with IndexWriter.open(config.index, pipeline.dim, pipeline.identity, config.factory) as writer:
        source = {"model": str(config.model.absolute()) if config.model else None, "base": config.base}
        write_json(config.index / "source.json", source | {"images": str(config.images.absolute())})
        plan = writer.diff(items, digest=lambda item: sha256_of(config.images / item.id))
        writer.remove(plan.removed)
        batches = [plan.todo[start : start + BATCH] for start in range(0, len(plan.todo), BATCH)]
        with ThreadPoolExecutor(4) as pool:
            for batch in track(batches, "embed pictures", console=console, transient=True, disable=not batches):
                opened = list(pool.map(lambda item: read(config.images / item.id), batch))
                failures = [result for result in opened if isinstance(result, MediaError)]
                if failures and config.strict:
                    raise UserError(f"{failures[0]}; mend or remove it, or leave --strict out")
                bad += failures
                good = [(i, p) for i, p in zip(batch, opened, strict=True) if not isinstance(p, MediaError)]
                if good:
                    digests = pool.map(lambda pair: sha256_of(config.images / pair[0].id), good)
                    stamped = [replace(i, digest=d) for (i, _), d in zip(good, digests, strict=True)]
                    writer.add(stamped, pipeline.embed_images([picture for _, picture in good]))
        failed = {Path(error.path) for error in bad}
        new, changed = ([i for i in part if config.images / i.id not in failed] for part in (plan.new, plan.changed))
        # A picture that was fine and no longer is must not stay in the index with its old vector.
        writer.remove([item.id for item in plan.changed if item not in changed])
    for error in bad:
        console.print(f"left out: {error}", highlight=False, soft_wrap=True)
    index = VectorIndex.open(config.index, pipeline.identity)
    exact = "" if index.factory == "Flat" else f"; finds {100 * index.recall_against_exact():.1f} % of the exact top 10"
    print(
        f"{config.index}: {len(index)} pictures ({len(new)} new, {len(changed)} changed, {plan.unchanged} "
        f"unchanged, {len(plan.removed)} removed, {len(bad)} unreadable), {index.factory} index{exact}"
    )


def pictures(folder: Path) -> Iterator[Path]:
    """Every picture file below ``folder``, in sorted order.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    yield from sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def item_of(path: Path, folder: Path) -> Item:
    """The file as an index item: named by its path in the folder, stamped by size and modification time."""
    state = path.stat()
    return Item(path.relative_to(folder).as_posix(), f"{state.st_size}-{state.st_mtime_ns}")


def read(path: Path) -> Image.Image | MediaError:
    """The picture, or why it cannot be read."""
    try:
        return open_image(path)
    except MediaError as error:
        return error


if __name__ == "__main__":
    run(main, Config)
