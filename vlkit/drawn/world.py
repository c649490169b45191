"""The demo world in memory: scenes of three splits, then their images on disk with the visible parts of each.

Every random choice comes from a generator fixed by (seed, split, index, stream), so the world does not depend on how
many processes draw it, and any one image can be made again alone.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from vlkit.cli.show import Console, track
from vlkit.drawn.captions import captions
from vlkit.drawn.draw import mask_boxes, render
from vlkit.drawn.scenes import Domain, Scene, sample_scene, scene_from_json
from vlkit.files import read_json

WorldSize = Literal["small", "medium", "large"]
Style = Literal["drawn", "plain"]
Split = Literal["train", "val", "test"]
Box = tuple[float, float, float, float]
Item = TypeVar("Item")
Result = TypeVar("Result")

SPLITS: dict[str, int] = {"train": 1, "val": 2, "test": 3}
"""Splits and their numbers; a number is part of every seed and the leading digit of the split's image ids."""
COUNTS: dict[str, dict[str, int]] = {
    "small": {"train": 400, "val": 50, "test": 100},
    "medium": {"train": 2000, "val": 200, "test": 500},
    "large": {"train": 10000, "val": 500, "test": 1000},
}
"""Scenes per split by size of the world."""
DOMAINS: dict[str, Domain] = {"drawn": "demo", "plain": "pretrain"}
"""Styles of a world: drawn by hand on textured grounds, which the embedded bases have never seen, or the plain drawings
that they were pre-trained on (other scenes of them)."""
CAPTIONS = 5
"""Captions per image."""
SCENE_STREAM, CAPTION_STREAM = 0, 1
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Image:
    """One image on disk.

    Attributes:
        split: which split it is in.
        image_id: unique over all splits.
        file_name: name inside the folder of the split (:func:`split_folder`).
        scene: what was drawn.
        boxes: per thing, what is seen of it, xyxy in pixels; None if it is wholly hidden.
        areas: per thing, pixels seen of it (quarter pixels count).
        captions: ``CAPTIONS`` different sentences.
    """

    split: str
    image_id: int
    file_name: str
    scene: Scene
    boxes: tuple[Box | None, ...]
    areas: tuple[float, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """A drawn world.

    Attributes:
        seed: what it was made from.
        side: width and height of every image in pixels.
        workers: processes that writers may use; 0 = none besides this one.
        images: by split, in order of image id.
    """

    seed: int
    side: int
    workers: int
    images: dict[str, list[Image]]


def generator(seed: int, split: str, index: int, *stream: int) -> np.random.Generator:
    """The generator of one item of one split; ``stream`` separates uses (scene, captions, questions, ...)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS[split], index, *stream])))


def image_id(split: str, index: int) -> int:
    """Id of image ``index`` (from 0) of a split: train 100001..., val 200001..., test 300001..."""
    return SPLITS[split] * 100_000 + index + 1


def split_folder(split: str) -> str:
    """Folder of a split's images, named as in COCO: ``train2024``."""
    return f"{split}2024"


def file_name(split: str, index: int) -> str:
    """``COCO_train2024_000000100001.jpg``."""
    return f"COCO_{split_folder(split)}_{image_id(split, index):012d}.jpg"


def sample_scenes(seed: int, counts: dict[str, int], style: Style = "drawn") -> dict[str, list[Scene]]:
    """Scenes of every split; no two in the whole world have the same :meth:`Scene.key`.

    Held-out splits are drawn first, so they do not depend on the size of the training split.
    """
    seen: set[str] = set()
    scenes: dict[str, list[Scene]] = {}
    for split in sorted(counts, key=lambda name: -SPLITS[name]):
        scenes[split] = [_new_scene(seed, split, index, seen, DOMAINS[style]) for index in range(counts[split])]
    return {split: scenes[split] for split in counts}


def _new_scene(seed: int, split: str, index: int, seen: set[str], domain: Domain) -> Scene:
    attempt = 0
    while (scene := sample_scene(generator(seed, split, index, SCENE_STREAM, attempt), domain)).key() in seen:
        attempt += 1
    seen.add(scene.key())
    return scene


def draw_world(
    seed: int, counts: dict[str, int], folder: Path, side: int = 96, workers: int = 0, style: Style = "drawn"
) -> World:
    """Sample the scenes, write one JPEG each below ``folder``, and record what is visible where."""
    found = sample_scenes(seed, counts, style)
    items = [(split, i, scene) for split, scenes in found.items() for i, scene in enumerate(scenes)]
    images: dict[str, list[Image]] = {split: [] for split in counts}
    for split in counts:
        (folder / split_folder(split)).mkdir(parents=True)
    for image in mapped(partial(_draw_image, seed=seed, folder=folder, side=side), items, workers, "draw images"):
        images[image.split].append(image)
    return World(seed, side, workers, images)


def _draw_image(item: tuple[str, int, Scene], seed: int, folder: Path, side: int) -> Image:
    split, index, scene = item
    image, ids = render(scene, side)
    name = file_name(split, index)
    image.save(folder / split_folder(split) / name, quality=JPEG_QUALITY, subsampling=0)
    areas = np.bincount(ids.ravel(), minlength=len(scene.things) + 1)[1:] / 4
    sentences = captions(scene, generator(seed, split, index, CAPTION_STREAM), CAPTIONS)
    return Image(
        split=split,
        image_id=image_id(split, index),
        file_name=name,
        scene=scene,
        boxes=tuple(mask_boxes(ids, len(scene.things))),
        areas=tuple(areas.tolist()),
        captions=tuple(sentences),
    )


def read_world(folder: Path, seed: int, side: int, workers: int = 0) -> World:
    """The world that was drawn into ``folder``, read back from its scene and caption files."""
    images: dict[str, list[Image]] = {}
    for split in read_json(folder / "world.json")["counts"]:
        sentences: dict[int, list[str]] = {}
        for entry in read_json(folder / "annotations" / f"captions_{split_folder(split)}.json")["annotations"]:
            sentences.setdefault(entry["image_id"], []).append(entry["caption"])
        lines = (folder / f"scenes_{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        images[split] = [_read_image(json.loads(line), split, sentences) for line in lines]
    return World(seed, side, workers, images)


def _read_image(record: dict[str, Any], split: str, sentences: dict[int, list[str]]) -> Image:
    return Image(
        split=split,
        image_id=record["image_id"],
        file_name=record["file_name"].rpartition("/")[2],
        scene=scene_from_json(record["scene"]),
        boxes=tuple(None if box is None else tuple(box) for box in record["boxes"]),
        areas=tuple(record["areas"]),
        captions=tuple(sentences[record["image_id"]]),
    )


def mapped(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str, chunk: int = 32
) -> Iterator[Result]:
    """``map`` with a progress bar on stderr, in this process (0 workers) or in several; results keep the order.

    ``function`` and the items must pickle when there are workers. Processes are spawned, not forked: the caller may
    hold threads or a device.
    """
    console = Console(stderr=True)

    def shown(results: Iterable[Any]) -> Iterator[Any]:
        return iter(track(results, description=title, total=len(items), console=console))

    if workers <= 1 or len(items) <= chunk:
        yield from shown(map(function, items))
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from shown(pool.map(function, items, chunksize=chunk))
