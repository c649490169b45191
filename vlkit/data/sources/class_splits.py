"""Official files of few-shot and transfer benchmarks: split files of CoOp and BlackVIP, list files of VTAB-1k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlkit.data.sources.labelled import Labelled
from vlkit.errors import UserError, some
from vlkit.files import read_json, read_text, text_lines

SPLIT_FORM = 'expected is {"train": [["path", label, "class name"], …], "val": …, "test": …}'
LIST_FORM = "expected is an image path and a class number in each line"
LISTS = {"train800": "train", "val200": "val", "train800val200": "trainval"}
"""Stem of a VTAB-1k list -> split; other stems are the split's name."""
MOST_CLASSES = 1_000_000
"""A larger class number is a mistake, such as a path or an id in its place."""


# --- split files ------------------------------------------------------------------------------------------------------


def read_split_file(path: str | Path) -> Labelled:
    """Read ``split_zhou_<Dataset>.json`` of CoOp, CoCoOp, Tip-Adapter and BlackVIP.

    The order of the items stays: the published sampling of k shots depends on it
    (:func:`vlkit.tasks.classification.shots.sample_shots`).

    Raises:
        UserError: not such a file; an item is malformed; a class number has two names, a name two numbers, or an image
            two classes. The message names file, split and item.
    """
    path = Path(path)
    content = read_json(path, "give split_*.json")
    if not isinstance(content, dict) or "train" not in content:
        raise UserError(f'{path}: has no field "train"; {SPLIT_FORM}')
    items = list(_items(path, content))
    numbers: dict[int, tuple[str, str]] = {}
    names: dict[str, tuple[int, str]] = {}
    for where, _, _, number, name in items:
        known_name, first = numbers.setdefault(number, (name, where))
        if known_name != name:
            raise UserError(f'{where}: label {number} is "{name}" here and "{known_name}" in {first}; give it one name')
        known_number, first = names.setdefault(name, (number, where))
        if known_number != number:
            raise UserError(
                f'{where}: class "{name}" has label {number} here and {known_number} in {first}; rename one of the two'
            )
    classes = [numbers[number][0] for number in sorted(numbers)]
    labelled = Labelled(_dataset_name(path), {"split_file": path.name}, classes)
    if missing := sorted(set(range(max(numbers) + 1)) - set(numbers)):
        labelled.notes.append(f"no image has label {some(missing)}; these numbers are no classes")
    for where, split, image, _, name in items:
        labelled.add(split, image, name, where)
    return labelled


def _items(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, str, str, int, str]]:
    """(place, split, image, number, class name) of each item."""
    for split, listed in content.items():
        if not isinstance(listed, list):
            raise UserError(f'{path}: field "{split}" is not a list; {SPLIT_FORM}')
        if not listed:
            if split == "train":
                raise UserError(f'{path}: field "train" is empty; {SPLIT_FORM}')
            continue
        for place, item in enumerate(listed):
            where = f"{path}: {split}[{place}]"
            if not isinstance(item, list) or len(item) != 3:
                raise UserError(f'{where}: {str(item)[:60]!r} is not ["path", label, "class name"]')
            image, number, name = item
            if not isinstance(image, str) or not image.strip():
                raise UserError(f"{where}: the path is {image!r}; expected is a text")
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MOST_CLASSES:
                raise UserError(
                    f"{where}: the label is {number!r}; expected is a whole number of 0..{MOST_CLASSES - 1}"
                )
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{where}: the class name is {name!r}; expected is a text that is not empty")
            yield where, split, image, number, name.strip()


def _dataset_name(path: Path) -> str:
    """``split_zhou_OxfordPets.json`` -> ``OxfordPets``."""
    return path.stem.removeprefix("split_").removeprefix("zhou_") or path.stem


# --- list files -------------------------------------------------------------------------------------------------------


def read_lists(paths: Sequence[str | Path], name: str, classes: Sequence[str] | None = None) -> Labelled:
    """Read list files as published with VTAB-1k: ``images/train800/000000.jpg 17`` in each line, one file a split.

    ``train800.txt`` becomes split train, ``val200.txt`` val, ``train800val200.txt`` trainval, ``test.txt`` test.

    Args:
        paths: the files, or one folder with them.
        name: name of the dataset.
        classes: class names in the order of the numbers. None: the numbers are the names, which says nothing to a text
            tower.

    Raises:
        UserError: no list, a line is malformed, or a number has no class name; file and line are named.
    """
    files = _list_files([Path(path) for path in paths])
    rows = [(where, split, image, number) for split, file in files.items() for where, image, number in _lines(file)]
    count = max(number for *_, number in rows) + 1
    names = list(classes) if classes is not None else [str(number) for number in range(count)]
    labelled = Labelled(name, {"lists": [file.name for file in files.values()]}, names)
    if classes is None:
        labelled.notes.append("the classes have no names; give --classes FILE for class prompts that mean something")
    for where, split, image, number in rows:
        if number >= len(names):
            raise UserError(f"{where}: class number {number}, but --classes names only {len(names)} (from 0)")
        labelled.add(split, image, names[number], where)
    return labelled


def _list_files(paths: list[Path]) -> dict[str, Path]:
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        paths = [path for path in sorted(folder.glob("*.txt")) if path.stem in {*LISTS, "train", "val", "test"}]
        if not paths:
            raise UserError(f"{folder}: no list file there (train800.txt, val200.txt, test.txt, …)")
    files: dict[str, Path] = {}
    for path in paths:
        split = LISTS.get(path.stem, path.stem)
        if split in files:
            raise UserError(f'{path}: {files[split].name} is the list of split "{split}" already; give one')
        files[split] = path
    return files


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """(place, image, class number) of each line."""
    empty = True
    for place, line in enumerate(text_lines(read_text(path, LIST_FORM)), start=1):
        if not line.strip():
            continue
        image, _, number = line.strip().rpartition(" ")
        digits = number.isascii() and number.isdigit() and len(number) < 10
        if not image.strip() or not digits or int(number) >= MOST_CLASSES:
            raise UserError(f"{path}:{place}: {line.strip()[:60]!r}; {LIST_FORM}")
        empty = False
        yield f"{path}:{place}", image.strip().removeprefix("./"), int(number)
    if empty:
        raise UserError(f"{path}: is empty; {LIST_FORM}")
