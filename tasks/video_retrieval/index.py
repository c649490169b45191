"""Index a folder of videos for search; run again to bring the index up to date.

    python tasks/video_retrieval/index.py --model runs/video_retrieval/… --videos FOLDER --index IDX
    python tasks/video_retrieval/index.py --model … --videos FOLDER --index IDX --window 10 --stride 5   # long videos

Unchanged videos are skipped, removed ones dropped; embeddings made before a crash or Ctrl-C are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from vlkit.cli.config import run
from vlkit.cli.show import Console, track
from vlkit.data.batches_ahead import batches_ahead
from vlkit.data.images import MediaError
from vlkit.data.video.clip_frames import Clip
from vlkit.errors import UserError
from vlkit.index import IndexWriter, VectorIndex
from vlkit.index.media import VideoWindows
from vlkit.index.source import IndexSource, wanted
from vlkit.tasks.load import load
from vlkit.tasks.video_retrieval.pipeline import VideoRetrievalPipeline, load_zero_shot
from vlkit.tasks.video_retrieval.task import TASK

BATCH = 32


@dataclass
class Config:
    """Index a folder of videos for search."""

    videos: Path
    """Folder of videos, including sub-folders."""
    index: Path
    """Index folder, created if missing."""
    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Base to embed with, without an adapter."""
    window: float | None = None
    """Length in seconds of the windows that long videos are split into, each a separate result; default: whole
    videos.
    """
    stride: float | None = None
    """Seconds between the starts of windows; default: the window length, without overlap."""
    factory: str | None = None
    """FAISS factory string: Flat (exact, the default of a new index), HNSW32, IVF256,Flat, IVF1024,PQ32, …"""
    strict: bool = False
    """Stop at a video that cannot be read, instead of skipping and listing it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if self.stride is not None and self.window is None:
            raise UserError("--stride: belongs to --window; give both or neither")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} {value}: must be a number of seconds above 0")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise UserError(f"--stride {self.stride}: longer than --window {self.window}; frames would be skipped")


def main(config: Config) -> None:
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME")
    found = wanted("videos", config.videos, config.index)
    pipeline = (
        load(config.model, config.device, task=TASK.name)
        if config.model
        else load_zero_shot(config.base, config.device)
    )
    console, bad, items = Console(stderr=True), {}, []
    with IndexWriter.open(config.index, pipeline.dim, pipeline.identity, config.factory) as writer:
        IndexSource("videos", config.videos, config.model, config.base).write(config.index)
        cut = VideoWindows(config.videos, config.window, config.stride, writer.items)
        for path in track(found.paths, "read video headers", console=console):
            try:
                items += cut.items_of(path)
            except MediaError as error:
                leave_out(error, bad, config)
        plan = writer.diff(items, cut.digest)
        writer.remove(plan.removed)
        read = reader_of(pipeline)
        steps = batches_ahead(plan.todo, lambda item: read(Clip(*cut.part(item))), BATCH)
        total = -(-len(plan.todo) // BATCH)
        for batch, clips in track(steps, "embed videos", total=total, console=console, disable=not total):
            good = []
            for item, frames in zip(batch, clips, strict=True):
                if isinstance(frames, MediaError):
                    leave_out(frames, bad, config)
                else:
                    good.append((replace(item, digest=cut.digest(item)), frames))
            if good:
                writer.add([item for item, _ in good], pipeline.embed_frames([frames for _, frames in good]))
        # A video that has become unreadable must not keep any of its old vectors in the index.
        writer.remove([item.id for item in items if item.metadata["video"] in bad])
    for error in bad.values():
        console.print(f"left out: {error}")
    index = VectorIndex.open(config.index, pipeline.identity)
    exact = "" if index.factory == "Flat" else f"; finds {100 * index.recall_against_exact():.1f} % of the exact top 10"
    new, changed = (len([i for i in part if i.metadata["video"] not in bad]) for part in (plan.new, plan.changed))
    Console().print(
        f"{config.index}: {len({item.metadata['video'] for item in index.items})} videos, {len(index)} windows ({new} "
        f"new, {changed} changed, {plan.unchanged} unchanged, {len(plan.removed)} removed), {len(bad)} videos "
        f"unreadable, {index.factory} index{exact}"
    )
    if found.note():
        print(f"note: {found.note()}")


def reader_of(pipeline: VideoRetrievalPipeline) -> Callable[[Clip], Tensor | MediaError]:
    """Reads a clip's frames, or reports why they cannot be read."""

    def read(clip: Clip) -> Tensor | MediaError:
        try:
            return pipeline.embedder.reader(clip)
        except MediaError as error:
            return error

    return read


def leave_out(error: MediaError, bad: dict[str, MediaError], config: Config) -> None:
    """Record an unreadable video by its path in the folder, or stop at it with ``--strict``."""
    if config.strict:
        raise UserError(f"{error}; fix or remove it, or run without --strict")
    bad[Path(error.path).relative_to(config.videos).as_posix()] = error


if __name__ == "__main__":
    run(main, Config)
