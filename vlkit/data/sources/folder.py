"""A folder of the user's own pictures with captions: a table, JSON, or a text file beside each picture."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.data.media_folder import MediaFolder
from vlkit.data.scan import find_media
from vlkit.data.sources.prepare import Source, add_record
from vlkit.errors import UserError, some
from vlkit.files import read_json

# Names that other tools and hubs give to the two columns (or JSON fields); the first one present is taken.
IMAGE_NAMES = ("image", "file_name", "filename", "filepath", "image_path", "path", "file", "image_name", "img")
CAPTION_NAMES = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "comment", "description")
SPLIT_NAMES = ("split",)
CAPTION_FILES = tuple(
    f"{stem}.{ending}" for stem in ("captions", "metadata") for ending in ("csv", "tsv", "jsonl", "json")
)
CAPTION_ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".json")
_FORMS = (
    "give --captions FILE (CSV or JSONL with image and caption), or put a text file beside each picture "
    "(dog.jpg and dog.txt, one caption a line)"
)


@dataclass
class _Row:
    """What the caption file says of one picture (its path below the folder)."""

    texts: list[str] = field(default_factory=list)
    split: str | None = None


def read(
    folder: str | Path,
    captions: str | Path | None = None,
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Source:
    """Read a folder of captioned pictures for retrieval.

    Args:
        folder: searched for images with all its sub-folders; :mod:`vlkit.data.scan` says which files count.
        captions: CSV or TSV with a header, JSONL, or JSON (a list of objects, or ``{image: caption or captions}``);
            image paths relative to ``folder`` or to the caption file. None: a file of :data:`CAPTION_FILES` in the
            folder if there is one, else a text file beside each picture.
        val, test: shares of the pictures for these splits. Each picture's split follows from its path and ``seed``
            alone, so adding pictures moves no other. A column ``split`` in the caption file overrides them.

    Raises:
        UserError: no captions, no pictures, a line that cannot be read (file and line are named), or wrong shares.
    """
    folder = Path(folder)
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(
            f"--val {val} and --test {test}: give shares of at least 0 that leave some pictures to train on"
        )
    found = find_media(folder, "images", "--folder", beside=CAPTION_ENDINGS)
    pictures = found.names
    if captions is None:
        captions = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    rows = _read_side_texts(folder, pictures) if captions is None else _read_table(Path(captions), folder)
    name = folder.resolve().name or "folder"
    source = Source(name, "retrieval", {}, {"folder": str(folder.resolve()), "captions": str(captions or "beside")})
    source.notes += [found.note()] if found.note() else []
    for path, row in rows.items():
        split = row.split or split_of(path, val=val, test=test, seed=seed)
        add_record(source, split, {"id": f"{name}/{path}", "image": path}, row.texts)
    source.splits = {split: source.splits[split] for split in sorted(source.splits, key=_split_order)}
    if "train" not in source.splits:
        source.notes.append("no picture fell to train; lower --val and --test, or try another --seed")
    unused = [path for path in pictures if path not in rows]
    if captions is not None and unused:
        source.notes.append(f"{len(unused)} pictures have no line in {Path(captions).name}: {some(unused)}")
    return source


def split_of(path: str, *, val: float, test: float, seed: int) -> str:
    """The split of a picture, from a hash of its path below the folder: stable when others come or go."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def _split_order(split: str) -> tuple[int, str]:
    return ("train", "val", "test").index(split) if split in ("train", "val", "test") else 3, split


def _read_side_texts(folder: Path, pictures: list[str]) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    files = MediaFolder(folder)
    for path in pictures:
        rows[path] = _Row()
        text_file = files.find(posixpath.splitext(path)[0] + ".txt")
        if text_file is not None:
            rows[path].texts = [line for line in _text(folder / text_file).split("\n") if line.strip()]
    if not any(row.texts for row in rows.values()):
        raise UserError(f"{folder}: {len(pictures)} pictures but no captions; {_FORMS}")
    return rows


def _read_table(path: Path, folder: Path) -> dict[str, _Row]:
    """Group the lines of a caption file by picture, in order of first appearance."""
    rows: dict[str, _Row] = {}
    files = MediaFolder(folder)
    for where, image, texts, split in _entries(path):
        row = rows.setdefault(_below(image, path, files, where), _Row(split=split))
        if row.split != split:
            raise UserError(f'{where}: {image} has split "{split}" here and "{row.split}" before; give one')
        row.texts += texts
    if not rows:
        raise UserError(f"{path}: holds no captions; {_FORMS}")
    return rows


def _below(image: str, captions: Path, files: MediaFolder, where: str) -> str:
    """The path of a picture relative to the folder; ``image`` may be absolute, or relative to the caption file."""
    root, stated = os.path.abspath(files.root), image.replace("\\", "/")
    bases = (root, os.path.abspath(captions.parent))
    paths = [os.path.relpath(os.path.join(base, stated), root).replace(os.sep, "/") for base in bases]
    inside = [path for path in paths if path != ".." and not path.startswith("../")]
    if not inside:
        raise UserError(f"{where}: {image} is not below {files.root}; give a --folder that holds all pictures")
    return next(filter(None, map(files.find, inside)), inside[0])


def _entries(path: Path) -> Iterator[tuple[str, str, list[str], str | None]]:
    """Yield ``(file:line, image, captions, split)`` for each entry of a caption file."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(_text(path).split("\n"), start=1):
            if line.strip():
                yield _from_object(_parse(line, f"{path}:{number}"), f"{path}:{number}")
    elif path.suffix == ".json":
        content = read_json(path)
        if isinstance(content, dict):
            content = [{"image": image, "caption": texts} for image, texts in content.items()]
        if not isinstance(content, list):
            raise UserError(f"{path}: expected a list of objects, or an object {{image: caption}}; {_FORMS}")
        for index, entry in enumerate(content):
            yield _from_object(entry, f"{path}: [{index}]")
    else:
        yield from _from_csv(path)


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}); write one object a line") from None


def _from_object(entry: Any, where: str) -> tuple[str, str, list[str], str | None]:
    if not isinstance(entry, dict):
        raise UserError(f'{where}: expected an object such as {{"image": "dog.jpg", "caption": "a dog"}}')
    image = next((entry[name] for name in IMAGE_NAMES if entry.get(name) is not None), None)
    texts = next((entry[name] for name in CAPTION_NAMES if entry.get(name) is not None), None)
    split = next((entry[name] for name in SPLIT_NAMES if entry.get(name) is not None), None)
    if not isinstance(image, str) or not image:
        raise UserError(
            f'{where}: field "image" is missing or no text; name the picture (or {some(IMAGE_NAMES[1:], 3)})'
        )
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'{where}: field "caption" is missing or no text; give a caption or a list of captions')
    if split is not None and (not isinstance(split, str) or not split):
        raise UserError(f'{where}: field "split" is no text; write train, val or test, or leave it out everywhere')
    return where, image, texts, split


def _from_csv(path: Path) -> Iterator[tuple[str, str, list[str], str | None]]:
    """Rows of a table with a header; the separator is the one at which the header has both columns."""
    text = _text(path)
    header = text.split("\n", 1)[0].rstrip("\r")
    for separator in (",", "\t", ";", "|"):
        names = [name.strip().strip('"').lower() for name in header.split(separator)]
        image, caption, split = (_column(names, known) for known in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_NAMES))
        if image is not None and caption is not None:
            break
    else:
        known = f"image ({some(list(IMAGE_NAMES))}) and caption ({some(list(CAPTION_NAMES))})"
        raise UserError(f"{path}:1: the header {header[:60]!r} lacks a column for {known}; name the columns so")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        next(reader)
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                mend = "put captions that hold the separator in double quotes"
                raise UserError(f"{where}: {len(row)} columns where the header has {len(names)}; {mend}")
            if not row[image].strip():
                raise UserError(f'{where}: column "{names[image]}" is empty; name the picture')
            if split is not None and not row[split].strip():
                raise UserError(f'{where}: column "split" is empty; write train, val or test')
            yield where, row[image].strip(), [row[caption]], None if split is None else row[split].strip()
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a readable table ({error}); check its quotes") from None


def _column(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); {_FORMS}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
