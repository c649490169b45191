"""Caption files that users write or export: CSV, TSV, JSON and JSONL, with any of the usual column names.

Nothing is dropped silently: every column (or field) that can hold captions is read, and a note names the unread ones.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlkit.errors import UserError, some
from vlkit.files import read_text, text_lines

# Column names (or JSON fields) that other tools and hubs use. The first image column present is read, and all caption
# columns are, also numbered ones: caption2, caption_2, caption.1, ...
IMAGE_NAMES = ("image", "file_name", "filename", "filepath", "image_path", "path", "file", "image_name", "img")
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "title", "sentence", "sentences", "comment", "description", "raw"),
)
SPLIT_NAMES = ("split",)
FORMS = (
    "give --captions FILE (CSV or JSONL with image and caption), or put a text file beside each image "
    "(dog.jpg and dog.txt, one caption per line)"
)
_CAPTION = re.compile(rf"({'|'.join(CAPTION_NAMES)})(?:[ _.#-]*\(?\d+\)?)?")
# A list in a cell, as JSON, Python or NumPy print it: the last one without commas.
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_FILE_NAME = re.compile(r".+\.[A-Za-z0-9]{2,5}")
_LIST = re.compile(rf"\s*[\[(]\s*{_QUOTED}(?:\s*,?\s*{_QUOTED})*\s*,?\s*[\])]\s*", re.DOTALL)


class Entry(NamedTuple):
    """Content of one line (or object): its place for messages, the image as written there, captions and split."""

    where: str
    image: str
    texts: list[str]
    split: str | None


@dataclass
class _Unread:
    """Unread columns or fields, and the ones that captions were read from."""

    names: dict[str, None] = field(default_factory=dict)
    captions: dict[str, None] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)
    """Lines whose quotation mark was taken as part of the text."""

    def notes(self, path: Path) -> list[str]:
        """Notes for the user, one line each."""
        notes = []
        kinds = (_CAPTION.fullmatch(name) for name in self.captions)
        if len({kind[1].removesuffix("s") for kind in kinds if kind}) > 1:
            fix = "remove or rename one that holds something else"
            notes.append(f"{path.name}: captions were read from {some(list(self.captions), 12)}; {fix}")
        if self.names:
            notes.append(f"{path.name}: not read: {some(list(self.names), 12)}")
        if self.marks:
            where = f"line {self.marks[0]}" if len(self.marks) == 1 else f"{len(self.marks)} lines: {some(self.marks)}"
            notes.append(f"{path.name}: a quotation mark was read as part of the text in {where}")
        return notes


class _Fields(list):
    """A JSON object as (name, value) pairs: a name may occur twice."""


def read_caption_file(path: Path) -> tuple[list[Entry], list[str]]:
    """Entries of a caption file in file order, and notes for the user about unread and ambiguous content.

    Args:
        path: CSV or TSV with a header (or ``;`` or ``|`` between columns), JSONL, or JSON: a list of objects, or an
            object ``{image: caption, list of captions or object}``.

    Raises:
        UserError: the file cannot be read, or a line of it; the message names file and line.
    """
    unread = _Unread()
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        objects = _json_objects(path) if suffix == ".json" else _json_lines(path)
        entries = [_from_object(value, where, unread) for where, value in objects]
    else:
        entries = list(_from_table(path, unread))
    return entries, unread.notes(path)


# --- JSON and JSONL --------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text_lines(read_text(path, FORMS)), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _parse(line, where, "write one object per line")


def _json_objects(path: Path) -> Iterator[tuple[str, Any]]:
    content = _parse(read_text(path, FORMS), f"{path}", "is the file complete?")
    if isinstance(content, _Fields):
        if {"images", "annotations"} <= {name for name, _ in content}:
            raise UserError(f"{path}: holds COCO annotations; prepare them with data_prep/coco.py")
        for image, value in content:
            inner = value if isinstance(value, _Fields) else [("caption", value)]
            yield f"{path}: {image}", _Fields([(IMAGE_NAMES[0], image), *inner])
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield f"{path}: [{index}]", value
    else:
        raise UserError(f"{path}: expected a list of objects, or an object {{image: caption}}; {FORMS}")


def _parse(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Fields)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        place = f"line {line}: " if line > 1 else ""
        raise UserError(f"{where}: {place}not valid JSON ({getattr(error, 'msg', error)}); {fix}") from None


def _from_object(entry: Any, where: str, unread: _Unread) -> Entry:
    if not isinstance(entry, _Fields):
        raise UserError(f'{where}: expected an object such as {{"image": "dog.jpg", "caption": "a dog"}}')
    given = [(name.strip().lower(), value) for name, value in entry if value is not None]
    names = [name for name, _ in given]
    roles = _roles(names, unread)
    image = None if roles.image is None else given[roles.image][1]
    if not isinstance(image, str) or not image.strip():
        raise UserError(
            f'{where}: field "image" is missing or not a text; name the image (or {some(list(IMAGE_NAMES[1:]), 3)})'
        )
    texts: list[str] = []
    for column in roles.captions:
        found = _texts(given[column][1])
        if found is None:
            raise UserError(f'{where}: field "{names[column]}" is not a text; give a caption or a list of captions')
        texts += [text for text in found if column == roles.captions[0] or text not in texts]
    if not roles.captions:
        raise UserError(f'{where}: field "caption" is missing or not a text; give a caption or a list of captions')
    split = None if roles.split is None else given[roles.split][1]
    if split is not None and (not isinstance(split, str) or not split.strip()):
        raise UserError(f'{where}: field "split" is not a text; write train, val or test, or leave it out everywhere')
    return Entry(where, image.strip(), texts, split and split.strip())


def _texts(value: Any) -> list[str] | None:
    """Captions of a field: a text, a list of texts, a list written as a text, or objects that hold them; None = no
    captions.
    """
    if isinstance(value, str):
        return _texts_of_cell(value)
    if isinstance(value, _Fields):
        inner = [item for name, item in value if _CAPTION.fullmatch(name.strip().lower()) and item is not None]
        return _together(map(_texts, inner)) if inner else None
    if isinstance(value, list):
        return _together([item] if isinstance(item, str) else _texts(item) for item in value)
    return None


def _together(parts: Iterable[list[str] | None]) -> list[str] | None:
    texts: list[str] = []
    for part in parts:
        if part is None:
            return None
        texts += part
    return texts


def _texts_of_cell(cell: str) -> list[str]:
    """The captions of a cell: the items if it contains a list, else the whole cell."""
    if cell.lstrip()[:1] not in ("[", "("):
        return [cell]
    try:
        items = json.loads(cell)
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return items
    except (ValueError, RecursionError):
        pass
    if not _LIST.fullmatch(cell):
        return [cell]
    try:
        return [ast.literal_eval(item) for item in re.findall(_QUOTED, cell, re.DOTALL)]
    except (ValueError, SyntaxError):
        return [cell]


# --- columns ---------------------------------------------------------------------------------------------------------


class _Roles(NamedTuple):
    """Positions of the columns that are read; ``captions`` may be empty."""

    image: int | None
    captions: list[int]
    split: int | None


def _roles(names: list[str], unread: _Unread) -> _Roles:
    """Assign a role to each column or field by its lower-case name; unused ones are noted."""
    image, split = _first(names, IMAGE_NAMES), _first(names, SPLIT_NAMES)
    captions = [column for column, name in enumerate(names) if _CAPTION.fullmatch(name)]
    if image is not None and captions:
        unread.captions |= dict.fromkeys(names[column] for column in captions)
        for column in sorted(set(range(len(names))) - {image, split, *captions}):
            name = names[column]
            place = f"{name} ({column + 1})" if name else f"column {column + 1}, which has no name"
            unread.names[name if name and names.count(name) == 1 else place] = None
    return _Roles(image, captions, split)


def _first(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


def _from_table(path: Path, unread: _Unread) -> Iterator[Entry]:
    """Rows of a table with a header; the separator is the one that gives the header both columns."""
    text = read_text(path, FORMS)
    lines = text_lines(text) or [""]
    for separator in (",", "\t", ";", "|"):
        header, used = _first_row(lines, 0, separator, lambda line: False) or (lines[0].split(separator), 1)
        names = [name.strip().strip('"').strip().lower() for name in header]
        if _first(names, IMAGE_NAMES) is not None and any(map(_CAPTION.fullmatch, names)):
            break
    else:
        known = f"image ({some(list(IMAGE_NAMES))}) and caption ({some(list(CAPTION_NAMES))})"
        raise UserError(f"{path}:1: the header {lines[0][:60]!r} lacks a column for {known}; name the columns so")
    roles = _roles(names, unread)
    assert roles.image is not None  # the header has it
    for number, row in _rows(lines, used, separator, len(names), roles.image, unread):
        where = f"{path}:{number}"
        if len(row) != len(names):
            fix = "put captions that hold the separator in double quotes"
            raise UserError(f"{where}: {len(row)} columns where the header has {len(names)}; {fix}")
        if not row[roles.image].strip():
            raise UserError(f'{where}: column "{names[roles.image]}" is empty; name the image')
        if roles.split is not None and not row[roles.split].strip():
            raise UserError(f'{where}: column "split" is empty; write train, val or test')
        texts: list[str] = []
        for column in roles.captions:
            found = [text for text in _texts_of_cell(row[column]) if text.strip()]
            texts += [text for text in found if column == roles.captions[0] or text not in texts]
        split = None if roles.split is None else row[roles.split].strip()
        yield Entry(where, row[roles.image].strip(), texts or [""], split)


def _rows(
    lines: list[str], start: int, separator: str, columns: int, image: int, unread: _Unread
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, cells) for each row that is not blank.

    A quoted cell may span several lines. But if a line is a complete row by itself, and so is a line that its quotes
    would swallow, each line is a row and the quotation mark is part of the caption.
    """

    def is_row(line: str) -> bool:
        cells = line.split(separator)
        if separator == "\t" and len(cells) == columns:
            return True  # captions rarely contain tabs
        return len(cells) >= columns and _FILE_NAME.fullmatch(cells[image].strip(' "')) is not None

    at = start
    while at < len(lines):
        line, number = lines[at], at + 1
        if '"' in line:
            found = _first_row(lines, at, separator, is_row if is_row(line) else lambda line: False)
            row, used = found or (line.split(separator), 1)
            if not found:
                unread.marks.append(number)
        else:
            row, used = line.split(separator), 1
        at += used
        if any(cell.strip() for cell in row):
            yield number, row


def _first_row(lines: list[str], at: int, separator: str, stop: Any) -> tuple[list[str], int] | None:
    """Cells of the row that begins in line ``at`` and the number of its lines; None if its quotes are unbalanced, or
    continue into a line for which ``stop(line)`` is true.
    """

    def following() -> Iterator[str]:
        yield lines[at] + "\n"
        for place in range(at + 1, len(lines)):
            if stop(lines[place]):
                return
            yield lines[place] + "\n"

    reader = csv.reader(following(), delimiter=separator, strict=True)
    try:
        return next(reader), reader.line_num
    except (csv.Error, StopIteration):
        return None
