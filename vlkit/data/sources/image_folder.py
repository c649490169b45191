"""A folder of images with classes: a folder per class, or a table with image and label."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlkit.cli.show import visible
from vlkit.data.scan import find_media
from vlkit.data.sources.labelled import Labelled, in_order
from vlkit.data.sources.named_splits import CALLED, plain_split
from vlkit.data.sources.table import table_rows
from vlkit.errors import UserError, some

IMAGE_COLUMNS = ("image", "file", "file_name", "filename", "path", "image_path")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset")
FORM = "write a header such as image,label or image,label,split"


def read_folder(
    folder: str | Path, *, classes: Sequence[str] | None = None, val: float = 0.1, test: float = 0.2, seed: int = 0
) -> Labelled:
    """Read ``folder/CLASS/…`` or ``folder/{train,val,test}/CLASS/…``.

    Folders below a class folder belong to the class.

    Args:
        folder: where to look, by the rules of :mod:`vlkit.data.scan`.
        classes: the class names, each the name of a folder, or folder and class name (``n01440764 tench``, as for
            ImageNet); None = the folders, sorted.
        val, test: shares of each class for these splits (:func:`split_classes`), where the folder has none.
        seed: of these splits.

    Raises:
        UserError: no images, no class folders, a class that is not in ``classes``, or wrong shares.
    """
    folder = Path(folder)
    found = find_media(folder, "images", "--folder", utf8_only=True)
    tops = {name.split("/")[0] for name in found.names if "/" in name}
    divided = bool(tops) and all(top.lower() in CALLED for top in tops)
    depth = 2 if divided else 1
    loose = [name for name in found.names if name.count("/") < depth]
    inside = [name for name in found.names if name.count("/") >= depth]
    if not inside:
        raise UserError(f"{folder}: images lie in no class folder ({some(loose, 3)}); put each class into a folder")
    label_of = {name: name.split("/")[depth - 1] for name in inside}
    empty = _empty_folders(folder, tops if divided else {""}, set(label_of.values()))
    if called := _folder_names(set(label_of.values()), classes or ()):
        classes, label_of = list(called.values()), {name: called[label] for name, label in label_of.items()}
    names = _known_classes(in_order(label_of.values()), classes, f"{folder}")
    labelled = Labelled(_name_of(folder), {"folder": str(folder.resolve())}, names)
    labelled.notes += [found.note()] if found.note() else []
    if loose:
        labelled.notes.append(f"images in no class folder, left out ({len(loose)}): {some(loose, 3)}")
    if empty:
        labelled.notes.append(f"folders without images, which are no classes: {some(empty)}")
    if divided:
        split_of = {name: CALLED[name.split("/")[0].lower()] for name in inside}
    else:
        split_of = split_classes(label_of, val=val, test=test, seed=seed)
    for name in inside:
        labelled.add(split_of[name], name, label_of[name], name)
    return labelled


def read_table(
    table: str | Path,
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Labelled:
    """Read a CSV, TSV or semicolon table with a header: image, label and optionally split.

    Args:
        table: the file; image paths are relative to ``folder``.
        folder: the folder with the images (for the dataset's name).
        classes, val, test, seed: see :func:`read_folder`; shares apply if there is no column for the split.

    Raises:
        UserError: the header lacks a column, or a row is wrong; file and line are named.
    """
    rows = list(_rows(Path(table)))
    if not rows:
        raise UserError(f"{table}: holds a header but no row; {FORM}")
    names = _known_classes(in_order(label for _, _, label, _ in rows), classes, f"{table}")
    labelled = Labelled(_name_of(Path(folder)), {"labels": str(table), "folder": str(Path(folder).resolve())}, names)
    label_of = {image: label for _, image, label, _ in rows}
    split_of = split_classes(label_of, val=val, test=test, seed=seed)
    for where, image, label, split in rows:
        labelled.add(split or split_of[image], image, label, where)
    return labelled


def split_classes(label_of: dict[str, str], *, val: float, test: float, seed: int) -> dict[str, str]:
    """Split each class by itself: image -> train, val or test.

    The order within a class is that of a hash of path and ``seed``. Both shares are rounded, and at least one image of
    each class stays in train.

    Raises:
        UserError: shares that leave nothing to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f"--val {val} and --test {test}: give shares of at least 0 that leave some images to train on")
    members: dict[str, list[str]] = {}
    for image, label in label_of.items():
        members.setdefault(label, []).append(image)
    split_of = {}
    for images in members.values():
        images.sort(key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest())
        tests = min(round(test * len(images)), len(images) - 1)
        vals = min(round(val * len(images)), len(images) - 1 - tests)
        for place, image in enumerate(images):
            split_of[image] = "test" if place < tests else "val" if place < tests + vals else "train"
    return split_of


def _folder_names(folders: set[str], lines: Sequence[str]) -> dict[str, str]:
    """Folder -> class name, if each line names both; else empty.

    Raises:
        UserError: two folders have one class name.
    """
    pairs = [line.split(maxsplit=1) for line in lines]
    if folders <= set(lines) or not all(len(pair) == 2 for pair in pairs) or not folders <= {p[0] for p in pairs}:
        return {}
    folder_of: dict[str, str] = {}
    for folder, name in pairs:
        if folder_of.setdefault(name, folder) != folder:
            raise UserError(
                f'--classes: "{name}" is the class of {folder_of[name]} and of {folder}; give each one name'
            )
    return {folder: name for folder, name in pairs}


def _known_classes(found: list[str], classes: Sequence[str] | None, where: str) -> list[str]:
    if classes is None:
        return found
    if unknown := [name for name in found if name not in set(classes)]:
        raise UserError(f"{where}: classes {some(unknown)} are not in --classes; add them there")
    return list(classes)


def _empty_folders(folder: Path, tops: set[str], used: set[str]) -> list[str]:
    there = {entry.name for top in tops for entry in os.scandir(folder / top) if entry.is_dir()}
    return sorted(visible(name) for name in there - used if not name.startswith("."))


def _name_of(folder: Path) -> str:
    return visible(folder.resolve().name) or "folder"


def _rows(path: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """(place, image, label, split or None) of each row."""
    columns: list[str] = []
    for where, row in table_rows(path, FORM, separators=",\t;", lower=True):
        columns = columns or _columns(list(row), path)
        cells = {name: " ".join(cell.split("\n")).strip() for name, cell in row.items()}
        for name in columns:
            if not cells[name]:
                raise UserError(f'{where}: column "{name}" is empty; give every image a value')
        image, label, *split = (cells[name] for name in columns)
        yield where, posixpath.normpath(image.replace("\\", "/")), label, plain_split(split[0]) if split else None


def _columns(names: list[str], path: Path) -> list[str]:
    """The columns of image and label, and of the split if there is one."""
    image, label, split = (
        next((name for name in known if name in names), None) for known in (IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    if image is None or label is None:
        lacking, known = ("image", IMAGE_COLUMNS) if image is None else ("label", LABEL_COLUMNS)
        header = ",".join(names)[:60]
        raise UserError(
            f"{path}:1: the header {header!r} has no column for the {lacking} ({some(list(known), 6)}); {FORM}"
        )
    return [image, label] if split is None else [image, label, split]
