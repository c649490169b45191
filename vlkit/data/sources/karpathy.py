"""Karpathy split files (``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json``)."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from vlkit.data.sources.common import take, whole_number
from vlkit.data.sources.prepare import Source, add_record
from vlkit.errors import UserError

# The 30,504 images of "restval" belong to training in every published protocol.
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def is_karpathy(content: Any) -> bool:
    """True for the parsed content of a Karpathy file: images that carry their own sentences."""
    images = content.get("images") if isinstance(content, dict) else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def read_karpathy(content: dict[str, Any], path: Path) -> Source:
    """Records of a Karpathy file, images and captions in file order, all captions kept.

    Evaluation uses the first five captions of an image; that choice is the metric's, not the dataset's.

    Args:
        content: parsed JSON for which :func:`is_karpathy` is true.
        path: where it came from, for messages.

    Raises:
        UserError: a record lacks a field or names an unknown split.
    """
    name = content.get("dataset")
    name = name if isinstance(name, str) and name else path.stem.removeprefix("dataset_")
    source = Source(name, "retrieval", {}, {"annotations": str(path.resolve()), "layout": "karpathy"})
    for split in ("train", "val", "test"):
        source.splits[split] = []
    for index, image in enumerate(content["images"]):
        where = f"{path}: images[{index}]"
        split = take(image, "split", str, where)
        if split not in _SPLITS:
            raise UserError(f'{where}: field "split" is "{split}"; known are {", ".join(_SPLITS)}')
        filename = take(image, "filename", str, where)
        folder = take(image, "filepath", str, where) if "filepath" in image else ""
        number = whole_number(image.get("cocoid")) or image.get("cocoid") or image_id(filename)
        record = {"id": f"{name}/{number}", "image": posixpath.join(folder, filename)}
        sentences = take(image, "sentences", list, where)
        texts = [_raw(sentence, f"{where}.sentences[{i}]") for i, sentence in enumerate(sentences)]
        add_record(source, _SPLITS[split], record, texts)
    return source


def image_id(filename: str) -> str:
    """COCO's number for ``COCO_val2014_000000000123.jpg`` and ``000000000123.jpg``; else the name without ending."""
    stem = posixpath.splitext(posixpath.basename(filename))[0]
    number = re.fullmatch(r"(?:COCO_[a-z]+\d+_)?(\d{12})", stem)
    return str(int(number[1])) if number else stem


def _raw(sentence: Any, where: str) -> str:
    if isinstance(sentence, dict) and not isinstance(sentence.get("raw"), str) and "tokens" in sentence:
        return " ".join(map(str, take(sentence, "tokens", list, where)))
    return take(sentence, "raw", str, where)
