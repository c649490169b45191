"""Ids and file names of COCO images, as VQA v2 and RefCOCO refer to them."""

from __future__ import annotations

import posixpath
import re

from vlkit.data.sources import coco

_NAMED = re.compile(r"(?:COCO_([a-z]+\d+)_)?(\d{12})\.\w+")


def image_path(folder: str, image_id: int) -> str:
    """Path of image ``image_id`` of a COCO folder: ``val2014/COCO_val2014_000000000123.jpg``; from 2017 on the names
    are plain numbers, ``val2017/000000000123.jpg``.
    """
    number = f"{image_id:012d}.jpg"
    return f"{folder}/{number}" if folder.endswith("2017") else f"{folder}/COCO_{folder}_{number}"


def with_folder(file_name: str) -> str:
    """``COCO_train2014_000000000123.jpg`` -> the same below ``train2014/``; other names unchanged."""
    match = _NAMED.fullmatch(file_name)
    return f"{match[1]}/{file_name}" if match and match[1] else file_name


def other_places(path: str) -> list[str]:
    """Other possible paths of an image: under its name in another release
    (:func:`vlkit.data.sources.coco.other_places`), without its folder, or with the plain number as its name.
    """
    folder, name = posixpath.split(path)
    match = _NAMED.fullmatch(name)
    plain = [f"{folder}/{match[2]}.jpg", f"{match[2]}.jpg", f"{folder}/COCO_{folder}_{name}"] if match else []
    return [*plain, *coco.other_places(path)]
