"""The prepared demo dataset of each task: made on first use in the user's cache, by the ordinary converters."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from vlkit.data.manifest import Dataset
from vlkit.data.sources import class_splits, coco, msrvtt, qvhighlights, refcoco, vqav2
from vlkit.data.sources.prepare import Source, prepare
from vlkit.drawn import VERSION, text_pairs
from vlkit.drawn.folder import whole_folder
from vlkit.drawn.kind_images import SPLIT_FILE, TEMPLATES
from vlkit.drawn.make import make_world
from vlkit.drawn.world import Style, WorldSize
from vlkit.errors import UserError
from vlkit.files import cache_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a task's dataset is made from the demo world.

    Attributes:
        parts: what the world must hold besides images and captions (:data:`vlkit.drawn.make.PARTS`).
        read: the converter, given the folder of the world.
        media: folder in the world that media paths start from.
        write: for texts about scenes, which need no images: (seed, size, style) -> their records. Then nothing is
            drawn, and the fields above are not used.
        task: the task of the dataset; None = the recipe's key.
        revision: counted up when only this dataset is made in another way, so that the world's images stay.
    """

    parts: tuple[str, ...] = ()
    read: Callable[[Path], Source] | None = None
    media: str = "."
    write: Callable[[int, WorldSize, Style], Source] | None = None
    task: str | None = None
    revision: int = 1


RECIPES: dict[str, Recipe] = {
    "retrieval": Recipe((), lambda world: coco.read(world / "dataset_coco.json")),
    "video_retrieval": Recipe(
        ("msrvtt",), lambda world: msrvtt.read(world / "msrvtt" / "MSRVTT_data.json"), "msrvtt/videos"
    ),
    "moment_retrieval": Recipe(("moments",), lambda world: qvhighlights.read(world / "moments"), "moments/videos"),
    "vqa": Recipe(("vqa",), lambda world: _read_vqa(world / "vqa")),
    "grounding": Recipe(("refcoco",), lambda world: refcoco.read_refs(world / "refcoco")),
    "text": Recipe(write=partial(text_pairs.source_of, "inference"), revision=2),
    "paraphrase": Recipe(write=partial(text_pairs.source_of, "paraphrase"), task="text", revision=2),
    "classification": Recipe(("kinds",), lambda world: _read_kinds(world / "kinds"), "kinds"),
    "dark": Recipe(
        ("dark_kinds",), lambda world: _read_kinds(world / "dark_kinds"), "dark_kinds", task="classification"
    ),
}
"""Task -> recipe."""


def demo_dataset(task: str, size: WorldSize = "medium", seed: int = 0, style: Style = "drawn") -> Path:
    """The prepared demo dataset of a task, below ``cache_folder()/demo``; made on first use, then reused.

    The tasks share the images of one world per style. A killed run leaves nothing that a later one would take for
    complete, and of several processes at once one does the work.

    Args:
        task: what the dataset is for, one of :data:`RECIPES`.
        size: number of scenes (:data:`vlkit.drawn.world.COUNTS`).
        seed: of the world.
        style: of its images (:data:`vlkit.drawn.world.DOMAINS`).

    Returns:
        The folder with ``dataset.json``.

    Raises:
        UserError: the cache cannot be written, or ``seed`` is negative.
    """
    recipe = RECIPES[task]
    suffix = "" if style == "drawn" else f"-{style}"
    variant = f"-{task}" if recipe.task else ""
    home = cache_folder().absolute() / "demo" / f"v{VERSION}-{size}-seed{seed}{suffix}"
    world, output = home / "world", home / (task if recipe.revision == 1 else f"{task}-{recipe.revision}")
    name = recipe.task or task
    if _is_ready(output, name):
        return output
    log.info("making the %s demo dataset for %s (%s, seed %d) in %s", style, task.replace("_", " "), size, seed, output)
    try:
        if recipe.write is None:
            make_world(world, seed, size, parts=recipe.parts, style=style)
        with whole_folder(output, lambda: _is_ready(output, name)) as folder:
            if folder is not None:
                source = recipe.write(seed, size, style) if recipe.write else cast(Any, recipe.read)(world)
                media = folder if recipe.write else world / recipe.media
                prepare(dataclasses.replace(source, name=f"demo{suffix}{variant}"), folder, media)
                shutil.rmtree(output, ignore_errors=True)  # an earlier one that lost its media
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{home}: cannot write ({reason}); set VLKIT_CACHE to a folder with free space") from error
    return output


def _is_ready(output: Path, task: str) -> bool:
    """Whether the dataset exists, including its media (a cleared or moved cache may lack them)."""
    try:
        Dataset.open(output, task)
    except UserError:
        return False
    return True


def _read_kinds(folder: Path) -> Source:
    return class_splits.read_split_file(folder / SPLIT_FILE).source(TEMPLATES)


def _read_vqa(folder: Path) -> Source:
    return vqav2.read(sorted(folder.glob("*_questions.json")), sorted(folder.glob("*_annotations.json")))
