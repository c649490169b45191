"""A visitor's own images with a class each; the class is stated in a table, or is the folder that an image lies in."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vlkit.cli.show import visible
from vlkit.data.images.formats import IMAGE_SUFFIXES
from vlkit.data.media_folder import MediaFolder
from vlkit.data.sources.image_folder import read_folder, read_table, split_classes
from vlkit.data.sources.labelled import Labelled, in_order
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError, some
from vlkit.serving.limits import check_text
from vlkit.serving.own_images import HELD_OUT, HELD_OUT_FROM, Annotations
from vlkit.serving.uploaded import common_folder

MOST_CHARACTERS = 60
"""Longest class name that names a folder."""


def class_folder(name: str) -> str:
    """A class name as the folder of its images.

    Raises:
        UserError: empty, too long, or no folder can have that name.
    """
    name = check_text(name, "class")
    if len(name) > MOST_CHARACTERS or name.startswith(".") or any(c in "/\\" or ord(c) < 32 for c in name):
        raise UserError(
            f"{visible(name)}: cannot be a class here; take at most {MOST_CHARACTERS} characters, without / and \\ and "
            "without a dot at the beginning."
        )
    return name


def read_classes(folder: Path, names: Sequence[str], table: str | None) -> Source:
    """The class of each image: from a table with the columns image and label, else the folder that it lies in.

    A table may state the splits; otherwise a share of each class is held out if there are enough images.

    Args:
        folder: the folder with the files.
        names: their relative paths.
        table: one of them; its image paths are relative to the folder that it lies in.

    Raises:
        UserError: an image has no class, all have the same, or the table is wrong.
    """
    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    top = common_folder(images) if table is None else PurePosixPath(table).parent
    if table is None:
        _refuse_loose(images, top)
        found = read_folder(folder / top, val=0, test=0)
    else:
        found = read_table(folder / table, folder / top, val=0, test=0)
    stated = [(split, record) for split, records in found.source().splits.items() for record in records]
    files, uploaded = MediaFolder(folder), set(images)
    there = {record["image"]: files.find(posixpath.normpath(top / record["image"])) for _, record in stated}
    # A table may name other files of the server.
    there = {name: actual for name, actual in there.items() if actual in uploaded}
    if without := sorted(uploaded.difference(there.values())):
        raise _no_class(without, table)
    absent = [record["image"] for _, record in stated if record["image"] not in there]
    rows = [(split, there[r["image"]], r["label"]) for split, r in stated if r["image"] in there]
    source = _held_out(rows, found.inputs, table or "the upload")
    if absent:
        source.notes.append(f"images of the table that were not uploaded ({len(absent)}): {some(absent, 3)}")
    return source


def _held_out(rows: Sequence[tuple[str, str, str]], inputs: object, where: str) -> Source:
    """A source of (split, image, class); some images of each class become ``val``, if no split is called so."""
    label_of = {image: label for _, image, label in rows}
    classes = in_order(label_of.values())
    if len(classes) < 2:
        only = f": {visible(classes[0])}" if classes else ""
        raise UserError(f"There is one class{only}; give images of at least two classes.")
    labelled = Labelled("own images", inputs, classes)
    splits = {split for split, _, _ in rows}
    share = HELD_OUT if len(label_of) >= HELD_OUT_FROM else 0.0
    split_of = {} if {"train", "val"} <= splits else split_classes(label_of, val=share, test=0, seed=0)
    for split, image, label in rows:
        labelled.add(split_of.get(image, split), image, label, where)
    source = labelled.source()
    source.notes = [note.partition("; see --")[0] for note in source.notes]  # a page has no flags
    return source


def _refuse_loose(images: Sequence[str], top: PurePosixPath) -> None:
    if loose := [name for name in images if PurePosixPath(name).parent == top]:
        raise _no_class(loose, None)


def _no_class(images: Sequence[str], table: str | None) -> UserError:
    how = (
        "choose files of one class, type the class and press Add; or upload a zip archive with a folder for each "
        "class, or a CSV with the columns image and label"
        if table is None
        else f"add a row for each image to {visible(table)}"
    )
    return UserError(f"{visible(some(images, 3))}: no class is given; {how}.")


CLASSES = Annotations(what="classes", tables=(".csv", ".tsv"), usual=("labels.csv",), texts=(), read=read_classes)
