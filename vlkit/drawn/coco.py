"""The demo world in the official files of COCO: captions, instances and the Karpathy splits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.drawn.draw import place_points
from vlkit.drawn.graph import Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.world import Image, World, split_folder
from vlkit.files import write_text

INFO = {
    "description": "vlkit demo world: drawn scenes with captions",
    "url": "",
    "version": "1.0",
    "year": 2024,
    "contributor": "vlkit",
    "date_created": "2024/01/01",
}
LICENSES = [{"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0"}]
CATEGORIES = [
    {"supercategory": kind.group, "id": number, "name": name} for number, (name, kind) in enumerate(KINDS.items(), 1)
]
CATEGORY_IDS: dict[str, int] = {category["name"]: category["id"] for category in CATEGORIES}


def write_coco(world: World, folder: Path) -> None:
    """Write ``annotations/captions_*2024.json``, ``annotations/instances_*2024.json`` and ``dataset_coco.json``."""
    for split, images in world.images.items():
        name = split_folder(split)
        head = {"info": INFO, "licenses": LICENSES, "images": [image_record(p, world.side) for p in images]}
        sentences = [
            {"image_id": image.image_id, "id": caption_id(image, k), "caption": text}
            for image in images
            for k, text in enumerate(image.captions)
        ]
        _write(folder / "annotations" / f"captions_{name}.json", {**head, "annotations": sentences})
        objects = [record for image in images for record in instance_records(image, world.side)]
        instances = {**head, "annotations": objects, "categories": CATEGORIES}
        _write(folder / "annotations" / f"instances_{name}.json", instances)
    _write(folder / "dataset_coco.json", karpathy(world))


def write_scenes(world: World, folder: Path) -> None:
    """Write ``scenes_<split>.jsonl``: one line per image with its scene graph, boxes (xyxy pixels) and areas."""
    for split, images in world.images.items():
        lines = []
        for p in images:
            record = {"image_id": p.image_id, "file_name": f"{split_folder(split)}/{p.file_name}"}
            lines.append(json.dumps({**record, "boxes": p.boxes, "areas": p.areas, "scene": p.scene.to_json()}))
        write_text(folder / f"scenes_{split}.jsonl", "".join(line + "\n" for line in lines))


def _write(path: Path, value: Any) -> None:
    """JSON on one line, as the official files are: with one number per line, polygons would be ten times as long."""
    write_text(path, json.dumps(value) + "\n")


def image_record(image: Image, side: int) -> dict[str, Any]:
    """The ``images`` entry of an image."""
    return {
        "license": 1,
        "file_name": image.file_name,
        "coco_url": "",
        "height": side,
        "width": side,
        "date_captured": "2024-01-01 00:00:00",
        "flickr_url": "",
        "id": image.image_id,
    }


def caption_id(image: Image, number: int) -> int:
    """Id of a caption, unique over all splits."""
    return image.image_id * 10 + number


def annotation_id(image: Image, number: int) -> int:
    """Id of the instance of thing ``number``, unique over all splits."""
    return image.image_id * 10 + number


def instance_records(image: Image, side: int) -> list[dict[str, Any]]:
    """The ``annotations`` entries of the things seen in an image.

    ``bbox`` (xywh) and ``area`` are of what is seen; ``segmentation`` is the whole form without its outline.
    """
    records = []
    for number, (thing, box, area) in enumerate(zip(image.scene.things, image.boxes, image.areas, strict=True)):
        if box is None:
            continue
        left, top, right, bottom = box
        records.append(
            {
                "segmentation": polygons(thing, side),
                "area": area,
                "iscrowd": 0,
                "image_id": image.image_id,
                "bbox": [left, top, right - left, bottom - top],
                "category_id": CATEGORY_IDS[thing.kind],
                "id": annotation_id(image, number),
            }
        )
    return records


def polygons(thing: Thing, side: int) -> list[list[float]]:
    """The drawn parts of a thing as COCO polygons ``[x0, y0, x1, y1, ...]``; their union is its shape."""
    found = []
    for part in KINDS[thing.kind].parts:
        points = place_points(part.points, thing, side).clip(0, side)
        found.append(np.round(points, 2).ravel().tolist())
    return found


def karpathy(world: World) -> dict[str, Any]:
    """The value of ``dataset_coco.json``: every image with its split and sentences."""
    images: list[dict[str, Any]] = []
    for split, own in world.images.items():
        for image in own:
            number = len(images)
            ids = [caption_id(image, k) for k in range(len(image.captions))]
            sentences = [
                {"tokens": tokens(text), "raw": text, "imgid": number, "sentid": sentence_id}
                for sentence_id, text in zip(ids, image.captions, strict=True)
            ]
            images.append(
                {
                    "filepath": split_folder(split),
                    "sentids": ids,
                    "filename": image.file_name,
                    "imgid": number,
                    "split": split,
                    "cocoid": image.image_id,
                    "sentences": sentences,
                }
            )
    return {"images": images, "dataset": "coco"}


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower())
