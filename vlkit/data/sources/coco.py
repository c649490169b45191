"""COCO captions: Karpathy's split file, the official ``captions_*.json``, or flat ``coco_karpathy_*.json``."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from vlkit.data.sources.common import take, take_id
from vlkit.data.sources.karpathy import image_id, is_karpathy, read_karpathy
from vlkit.data.sources.prepare import Counts, Source, add_record, compare_counts
from vlkit.errors import UserError
from vlkit.files import read_json

KARPATHY_COUNTS: Counts = {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)}
CAPTION_COUNTS = {
    "train2014": (82_783, 414_113),
    "val2014": (40_504, 202_654),
    "train2017": (118_287, 591_753),
    "val2017": (5_000, 25_014),
}
_NUMBERED = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")
_SPLIT_IN_NAME = re.compile(r"(?:^|[_.-])(train|val|test)(\d{4})?(?=$|[_.-])")


def read(annotations: str | Path) -> Source:
    """Read COCO captions for retrieval; all captions of an image are kept.

    Args:
        annotations: a Karpathy file; a ``captions_*.json`` (its split is in its name); a ``coco_karpathy_*.json``; or
            a folder of ``captions_*.json`` (or of ``coco_karpathy_*.json``), one per split.

    Raises:
        UserError: no such file, an unknown layout, a missing field, or two files for one split.
    """
    annotations = Path(annotations)
    files = _files_in(annotations) if annotations.is_dir() else [annotations]
    contents = [(path, read_json(path)) for path in files]
    if len(contents) == 1 and is_karpathy(contents[0][1]):
        path, content = contents[0]
        source, official = read_karpathy(content, path), KARPATHY_COUNTS
    else:
        inputs = {"annotations": [str(path.resolve()) for path in files]}
        source, official = Source("coco", "retrieval", {}, inputs), {}
        _read_splits(contents, source, official)
    source.notes += compare_counts(source, official)
    source.elsewhere = other_places
    return source


def other_places(path: str) -> list[str]:
    """Other possible paths of a COCO image: the 2014 and 2017 releases contain the same images under other names.

    The path without its folder is tried too (``--images`` already names it, or all images are in one folder).
    """
    name = posixpath.basename(path)
    numbered = _NUMBERED.fullmatch(name)
    if not numbered:
        return [name]
    number = numbered[1]
    of_2014 = [f"COCO_{folder}_{number}.jpg" for folder in ("train2014", "val2014")]
    in_2014 = [f"{folder}/COCO_{folder}_{number}.jpg" for folder in ("train2014", "val2014")]
    in_2017 = [f"{folder}/{number}.jpg" for folder in ("train2017", "val2017")]
    return [name, *in_2014, *in_2017, f"{number}.jpg", *of_2014]


def _files_in(folder: Path) -> list[Path]:
    for pattern in ("captions_*.json", "annotations/captions_*.json", "coco_karpathy_*.json", "dataset_coco.json"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise UserError(f"{folder}: holds no captions_*.json; give the folder of COCO's annotations, or a Karpathy file")


def _read_splits(contents: list[tuple[Path, Any]], source: Source, official: Counts) -> None:
    """Read one file per split into ``source``; add the official counts of each file with a known name."""
    given: dict[str, Path] = {}
    found = {}
    for path, content in contents:
        match = _SPLIT_IN_NAME.search(path.stem)
        if not match:
            raise UserError(f"{path}: its name contains no split; rename it, as in captions_train2017.json")
        split, folder = match[1], match[1] + (match[2] or "")
        if split in given:
            raise UserError(f'{path}: split "{split}" comes from {given[split].name} too; give one file per split')
        given[split] = path
        if folder in CAPTION_COUNTS and isinstance(content, dict):
            official[split] = CAPTION_COUNTS[folder]
        found[split] = (path, content, folder)
    for split in sorted(found, key=("train", "val", "test").index):
        path, content, folder = found[split]
        if isinstance(content, list):
            _read_flat(content, path, split, source)
        else:
            _read_captions(content, path, split, folder, source)


def _read_captions(content: Any, path: Path, split: str, folder: str, source: Source) -> None:
    """Official layout: captions are in any order; group them by image and sort by their id."""
    images = take(content, "images", list, f"{path}")
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else {}
    if not isinstance(annotations, list) or (annotations and not (isinstance(first, dict) and "caption" in first)):
        kind = "instances" if isinstance(first, dict) and "bbox" in first else "other annotations"
        raise UserError(f"{path}: holds {kind if annotations is not None else 'no annotations'}, give captions_*.json")
    texts: dict[int, list[tuple[int, str]]] = {}
    for index, annotation in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        image_id = take_id(annotation, "image_id", where)
        caption = (take_id(annotation, "id", where), take(annotation, "caption", str, where))
        texts.setdefault(image_id, []).append(caption)
    for index, image in enumerate(images):
        where = f"{path}: images[{index}]"
        name = take(image, "file_name", str, where)
        image_id = take_id(image, "id", where)
        record = {"id": f"coco/{image_id}", "image": name if "/" in name else f"{folder}/{name}"}
        add_record(source, split, record, [caption for _, caption in sorted(texts.pop(image_id, []))])
    if texts:
        raise UserError(f"{path}: has captions of image {next(iter(texts))} but not the image; is the file complete?")


def _read_flat(content: list[Any], path: Path, split: str, source: Source) -> None:
    """Flat layout: a list with one record per caption (train) or per image (val, test)."""
    texts: dict[str, list[str]] = {}
    for index, entry in enumerate(content):
        where = f"{path}: [{index}]"
        caption = take(entry, "caption", (str, list), where)
        captions = caption if isinstance(caption, list) else [caption]
        if not all(isinstance(text, str) for text in captions):
            raise UserError(f'{where}: field "caption" holds values that are not texts; is this the official file?')
        texts.setdefault(take(entry, "image", str, where), []).extend(captions)
    for image, captions in texts.items():
        add_record(source, split, {"id": f"coco/{image_id(image)}", "image": image}, captions)
