"""A visitor's own captioned images, made into a prepared dataset to train on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlkit.cli.show import visible
from vlkit.data.images.formats import IMAGE_SUFFIXES
from vlkit.data.records import Record
from vlkit.data.sources.folder import CAPTION_ENDINGS, CAPTION_FILES, read
from vlkit.data.sources.prepare import Source, add_record, prepare
from vlkit.errors import UserError, some
from vlkit.serving.limits import open_upload
from vlkit.serving.uploaded import Upload, parts_of, write_parts

LEAST_IMAGES, MOST_IMAGES = 4, 500
MOST_BYTES = 500 * 2**20
"""Largest upload, unpacked."""
HELD_OUT_FROM = 20
"""From this many images on, some are held out for validation."""
HELD_OUT = 0.2
"""Share of the images that is held out."""
TABLES = tuple(ending for ending in CAPTION_ENDINGS if ending != ".txt")


@dataclass(frozen=True)
class OwnImages:
    """A prepared dataset of own images.

    Attributes:
        root: its folder.
        training: number of training images.
        validation: name of the split that measures the adapter.
        notes: sentences for the visitor.
    """

    root: Path
    training: int
    validation: str
    notes: list[str]


def prepare_own_images(
    uploads: Sequence[Upload], root: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> OwnImages:
    """Unpack images and captions into ``root``, check every image, and write a prepared dataset there.

    Captions come from a table (CSV, TSV, JSON, JSONL), else from a text file beside each image, else from the file
    names: ``a_red_car.jpg`` is "a red car".

    Args:
        uploads: image files and caption files, or zip archives of them.
        root: a new folder.
        progress: called with the numbers of images checked and to check.

    Raises:
        UserError: too few or too many images, an unusable image, or no captions; the message names the file.
    """
    folder = root / "images"
    with parts_of(uploads, MOST_BYTES) as parts:
        images = [part for part in parts if part.suffix in IMAGE_SUFFIXES]
        tables = [part.name for part in parts if part.suffix in TABLES]
        _check_count(len(images))
        wanted = [part for part in parts if part.suffix in {*IMAGE_SUFFIXES, *CAPTION_ENDINGS}]
        others = [part.name for part in parts if part not in wanted]
        write_parts(wanted, folder, MOST_BYTES)
    for number, part in enumerate(images):
        progress(number, len(images))
        open_upload(folder / part.name, visible(part.name))
    table = _table(tables)
    if table is None and not any(part.suffix == ".txt" for part in wanted):
        source = _from_names([part.name for part in images])
    else:
        source = read(folder, None if table is None else folder / table, val=0, test=0)
    validation = _hold_out(source)
    prepared = prepare(source, root, folder, partial=True)
    count = len(prepared.dataset.records("train"))
    _check_count(sum(len(records) for records in source.splits.values()))
    notes = [visible(note) for note in prepared.notes]
    notes += [f"not read: {visible(some(others))}"] if others else []
    if validation == "train":
        notes.append(
            f"fewer than {HELD_OUT_FROM} images: none is held out, the metrics are those of the training images"
        )
    return OwnImages(root, count, validation, notes)


def caption_of(name: str) -> str | None:
    """The caption that a file name holds (``a_red-car (2).jpg`` -> "a red car"); None if it has fewer than two words.

    A camera's ``IMG_1234.jpg`` holds none.
    """
    stem = re.sub(r"\s*\(\d+\)$", "", PurePosixPath(name).stem)
    words = re.sub(r"[_\-+.\s]+", " ", stem).strip().split()
    while words and words[-1].isdigit():
        words.pop()
    return " ".join(words) if sum(word.isalpha() for word in words) >= 2 else None


def _from_names(names: Sequence[str]) -> Source:
    captions = {name: caption_of(name) for name in names}
    without = [name for name, caption in captions.items() if caption is None]
    if without:
        raise UserError(
            f"{visible(without[0])}: there are no captions, and the file name is none; add a CSV with the columns "
            "image and caption, a text file beside each image (dog.jpg and dog.txt), or name the images as captions "
            "(a_red_car.jpg)."
        )
    source = Source("own images", "retrieval", {}, "file names")
    for name, caption in captions.items():
        add_record(source, "train", {"id": name, "image": name}, [caption or ""])
    source.notes.append("captions are the file names")
    return source


def _table(names: Sequence[str]) -> str | None:
    """The caption table among ``names``; None if there is none.

    Raises:
        UserError: there are several, and none has a usual name.
    """
    usual = [name for name in names if PurePosixPath(name).name in CAPTION_FILES]
    found = usual or list(names)
    if len(found) > 1:
        raise UserError(f"There are several tables of captions: {visible(some(found))}; upload one.")
    return found[0] if found else None


def _hold_out(source: Source) -> str:
    """Hold some images out for validation, unless the captions state splits; the name of the split that measures."""
    if "train" in source.splits and "val" in source.splits:
        return "val"
    records: list[Record] = [record for each in source.splits.values() for record in each]
    if len(records) < HELD_OUT_FROM:
        source.splits = {"train": records}
        return "train"
    # Spread over the set, the same each time, and independent of the order of the files.
    order = sorted(records, key=lambda record: hashlib.sha256(record["image"].encode()).digest())
    held = max(LEAST_IMAGES, round(HELD_OUT * len(order)))
    source.splits = {"train": order[held:], "val": order[:held]}
    return "val"


def _check_count(count: int) -> None:
    if not LEAST_IMAGES <= count <= MOST_IMAGES:
        what = f"{count:,} captioned images" if count else "no captioned image"
        raise UserError(f"There {'are' if count else 'is'} {what}; upload {LEAST_IMAGES} to {MOST_IMAGES}.")
