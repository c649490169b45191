"""A folder of the user's own images with captions: a table, JSON, or a text file beside each image."""

from __future__ import annotations

import hashlib
import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.show import visible
from vlkit.data.media_folder import MediaFolder
from vlkit.data.scan import find_media
from vlkit.data.sources.caption_files import FORMS, read_caption_file
from vlkit.data.sources.named_splits import plain_split
from vlkit.data.sources.prepare import Source, add_record
from vlkit.errors import UserError, some
from vlkit.files import read_text, text_lines

CAPTION_FILES = tuple(
    f"{stem}.{ending}" for stem in ("captions", "metadata") for ending in ("csv", "tsv", "jsonl", "json")
)
CAPTION_ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".json")


@dataclass
class _Row:
    """Entry of the caption file for one image (its path below the folder)."""

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
    """Read a folder of captioned images for retrieval.

    Args:
        folder: searched for images with all its sub-folders, by the rules of :mod:`vlkit.data.scan`.
        captions: CSV or TSV with a header, JSONL, or JSON (a list of objects, or ``{image: caption or captions}``);
            image paths relative to ``folder`` or to the caption file. None: a file of :data:`CAPTION_FILES` in the
            folder if there is one, else a text file beside each image.
        val, test: shares of the images for these splits. Each image's split depends only on its path and ``seed``, so
            added images do not move others. A column ``split`` in the caption file overrides them.

    Raises:
        UserError: no captions, no images, a line that cannot be read (file and line are named), or wrong shares.
    """
    folder = Path(folder)
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f"--val {val} and --test {test}: give shares of at least 0 that leave some images to train on")
    found = find_media(folder, "images", "--folder", beside=CAPTION_ENDINGS, utf8_only=True)
    images = found.names
    if captions is None:
        captions = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    name = visible(folder.resolve().name) or "folder"
    source = Source(name, "retrieval", {}, {"folder": str(folder.resolve()), "captions": str(captions or "beside")})
    source.notes += [found.note()] if found.note() else []
    if captions is None:
        rows = _read_side_texts(folder, images)
    else:
        rows, notes = _read_table(Path(captions), folder)
        source.notes += [*notes, *_passed_over(folder, images, Path(captions))]
    for path, row in rows.items():
        split = plain_split(row.split) if row.split else split_of(path, val=val, test=test, seed=seed)
        add_record(source, split, {"id": f"{name}/{path}", "image": path}, row.texts)
    source.splits = {split: source.splits[split] for split in sorted(source.splits, key=_split_order)}
    if "train" not in source.splits:
        source.notes.append("no image is in the train split; lower --val and --test, or try another --seed")
    unused = [path for path in images if path not in rows]
    if captions is not None and unused:
        source.notes.append(f"{len(unused)} images have no line in {Path(captions).name}: {some(unused)}")
    return source


def split_of(path: str, *, val: float, test: float, seed: int) -> str:
    """The split of an image, from a hash of its path below the folder: stable when others are added or removed."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def _split_order(split: str) -> tuple[int, str]:
    return ("train", "val", "test").index(split) if split in ("train", "val", "test") else 3, split


def _read_side_texts(folder: Path, images: list[str]) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    files = MediaFolder(folder)
    for path in images:
        rows[path] = _Row()
        text_file = files.find(posixpath.splitext(path)[0] + ".txt")
        if text_file is not None:
            rows[path].texts = [line for line in text_lines(read_text(folder / text_file, FORMS)) if line.strip()]
    if not any(row.texts for row in rows.values()):
        raise UserError(f"{folder}: {len(images)} images but no captions; {FORMS}")
    return rows


def _passed_over(folder: Path, images: list[str], captions: Path) -> list[str]:
    """Notes on caption files in the folder that are not read."""
    others = [name for name in CAPTION_FILES if (folder / name).is_file() and not (folder / name).samefile(captions)]
    notes = [f"captions are read from {captions.name}; not read: {some(others)}"] if others else []
    files = MediaFolder(folder)
    beside = [path for path in images if files.find(posixpath.splitext(path)[0] + ".txt")]
    if beside:
        notes.append(f"captions are read from {captions.name}; not read: {len(beside)} text files beside images")
    return notes


def _read_table(path: Path, folder: Path) -> tuple[dict[str, _Row], list[str]]:
    """The lines of a caption file by image, in order of first appearance, and notes for the user."""
    rows: dict[str, _Row] = {}
    files = MediaFolder(folder)
    entries, notes = read_caption_file(path)
    for where, image, texts, split in entries:
        row = rows.setdefault(_below(image, path, files, where), _Row(split=split))
        if row.split != split:
            raise UserError(f'{where}: {image} has split "{split}" here and "{row.split}" before; give one')
        row.texts += texts
    if not rows:
        raise UserError(f"{path}: holds no captions; {FORMS}")
    return rows, notes


def _below(image: str, captions: Path, files: MediaFolder, where: str) -> str:
    """The path of an image relative to the folder; ``image`` may be absolute, or relative to the caption file."""
    root, stated = os.path.abspath(files.root), image.replace("\\", "/")
    bases = (root, os.path.abspath(captions.parent))
    paths = [os.path.relpath(os.path.join(base, stated), root).replace(os.sep, "/") for base in bases]
    inside = [path for path in paths if path != ".." and not path.startswith("../")]
    if not inside:
        raise UserError(f"{where}: {image} is not below {files.root}; give a --folder that holds all images")
    return next(filter(None, map(files.find, inside)), inside[0])
