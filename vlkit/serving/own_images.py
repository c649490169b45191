"""A visitor's own images, made into a prepared dataset to train on: with captions here, with classes in own_classes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True)
class Annotations:
    """What a visitor states about every image, and in which files.

    Attributes:
        what: its name in the plural.
        tables: endings of tables with a row for each image.
        usual: names of tables; one of them is read if there are several.
        texts: endings of further files that are read.
        read: (folder, names of the files in it, name of the table or None) -> source; its splits are ``train`` and,
            where images are held out, ``val``.
    """

    what: str
    tables: tuple[str, ...]
    usual: tuple[str, ...]
    texts: tuple[str, ...]
    read: Callable[[Path, Sequence[str], str | None], Source]


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
    uploads: Sequence[Upload],
    root: Path,
    annotations: Annotations,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OwnImages:
    """Unpack annotated images into ``root``, check every image, and write a prepared dataset there.

    Args:
        uploads: image files and files of annotations, or zip archives of them.
        root: a new folder.
        annotations: :data:`CAPTIONS` or :data:`vlkit.serving.own_classes.CLASSES`.
        progress: called with the numbers of images checked and to check.

    Raises:
        UserError: too few or too many images, an unusable image, or missing annotations; the message names the file.
    """
    folder = root / "images"
    with parts_of(uploads, MOST_BYTES) as parts:
        images = [part.name for part in parts if part.suffix in IMAGE_SUFFIXES]
        tables = [part.name for part in parts if part.suffix in annotations.tables]
        _check_count(len(images), annotations.what)
        wanted = [part for part in parts if part.suffix in {*IMAGE_SUFFIXES, *annotations.tables, *annotations.texts}]
        others = [part.name for part in parts if part not in wanted]
        write_parts(wanted, folder, MOST_BYTES)
    with _named_as_uploaded(folder):
        source = annotations.read(folder, [part.name for part in wanted], _table(tables, annotations))
        prepared = prepare(source, root, folder, partial=True)
    count = len(prepared.dataset.records("train"))
    total = sum(len(records) for records in source.splits.values())
    _check_count(total, annotations.what)
    for number, name in enumerate(images):
        progress(number, len(images))
        open_upload(folder / name, visible(name))
    notes = [_as_uploaded(visible(note), folder) for note in prepared.notes]
    notes += [f"not read: {visible(some(others))}"] if others else []
    validation = "val" if "val" in prepared.dataset.splits else "train"
    if validation == "train":
        few = f"fewer than {HELD_OUT_FROM}" if total < HELD_OUT_FROM else "few"
        notes.append(f"{few} images: none is held out, the metrics are those of the training images")
    return OwnImages(root, count, validation, notes)


@contextlib.contextmanager
def _named_as_uploaded(folder: Path) -> Iterator[None]:
    """Name files in errors as the visitor does, without the server's folder."""
    try:
        yield
    except UserError as error:
        raise UserError(_as_uploaded(str(error), folder)) from None


def _as_uploaded(text: str, folder: Path) -> str:
    for shown in (visible(folder), str(folder)):
        text = text.replace(f"{shown}{os.sep}", "").replace(shown, "the upload")
    return text


def read_captions(folder: Path, names: Sequence[str], table: str | None) -> Source:
    """Captions from a table (CSV, TSV, JSON, JSONL), else from a text file beside each image, else from the file names:
    ``a_red_car.jpg`` is "a red car".

    Raises:
        UserError: there are no captions.
    """
    if table is None and not any(name.lower().endswith(".txt") for name in names):
        source = _from_names([name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES])
    else:
        source = read(folder, None if table is None else folder / table, val=0, test=0)
    _hold_out(source)
    return source


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


def _table(names: Sequence[str], annotations: Annotations) -> str | None:
    """The table among ``names``; None if there is none.

    Raises:
        UserError: there are several, and none has a usual name.
    """
    usual = [name for name in names if PurePosixPath(name).name in annotations.usual]
    found = usual or list(names)
    if len(found) > 1:
        raise UserError(f"There are several tables of {annotations.what}: {visible(some(found))}; upload one.")
    return found[0] if found else None


def _hold_out(source: Source) -> None:
    """Hold some images out for validation, unless the captions state splits."""
    if "train" in source.splits and "val" in source.splits:
        return
    records: list[Record] = [record for each in source.splits.values() for record in each]
    if len(records) < HELD_OUT_FROM:
        source.splits = {"train": records}
        return
    # Spread over the set, the same each time, and independent of the order of the files.
    order = sorted(records, key=lambda record: hashlib.sha256(record["image"].encode()).digest())
    held = max(LEAST_IMAGES, round(HELD_OUT * len(order)))
    source.splits = {"train": order[held:], "val": order[:held]}


def _check_count(count: int, what: str) -> None:
    if not LEAST_IMAGES <= count <= MOST_IMAGES:
        raise UserError(f"There are {count or 'no'} images with {what}; upload {LEAST_IMAGES} to {MOST_IMAGES}.")


CAPTIONS = Annotations(
    what="captions",
    tables=tuple(ending for ending in CAPTION_ENDINGS if ending != ".txt"),
    usual=tuple(CAPTION_FILES),
    texts=(".txt",),
    read=read_captions,
)
