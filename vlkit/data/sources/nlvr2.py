"""NLVR2: ``train.json``, ``dev.json``, ``test1.json`` (one JSON object a line), and its pairs of images.

The VQA models read one image, so both images of a pair are joined side by side into one square image. This is not
the protocol of VL-T5, whose encoder reads the pair at full size with an embedding of the image's place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vlkit.data.images import MediaError, open_image
from vlkit.data.media_folder import MediaFolder
from vlkit.data.records import ANSWERS, Record
from vlkit.data.sources.common import take
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError, some
from vlkit.files import read_text, whole_file

SPLITS = {"train": "train", "dev": "val", "test1": "test", "test": "test", "test2": "test_unreleased"}
"""Name in a file and in its identifiers -> split."""
OFFICIAL = {"train": 86_373, "val": 6_982, "test": 6_967, "test_unreleased": 6_970}
MEDIA, SIDE, GAP = "pairs", 448, 8
"""Folder of the joined images in the prepared dataset, their side and the gap between the two, in pixels."""


def read(files: Sequence[str | Path]) -> Source:
    """Read NLVR2's sentences; labels become the answers ``true`` and ``false``, ten times each.

    Args:
        files: official files, one per split; identifiers give the split.

    Raises:
        UserError: a file is missing or another one, a line is wrong, or an identifier occurs twice.
    """
    source = Source("nlvr2", "vqa", {}, {"sentences": [str(Path(file).resolve()) for file in files]})
    seen: dict[str, str] = {}
    for file in map(Path, files):
        for where, entry in _lines(file):
            identifier = take(entry, "identifier", str, where)
            if identifier in seen:
                raise UserError(f"{where}: identifier {identifier} is already in {seen[identifier]}; give a file once")
            seen[identifier] = where
            split, record = _record(identifier, entry, where)
            source.splits.setdefault(split, []).append(record)
    source.splits = {split: source.splits[split] for split in OFFICIAL if split in source.splits}
    for split, records in source.splits.items():
        source.counts[split] = (len({record["image"] for record in records}), len(records))
        if OFFICIAL[split] // 2 < len(records) != OFFICIAL[split]:
            source.notes.append(
                f'split "{split}" has {len(records):,} sentences, the official file {OFFICIAL[split]:,}'
            )
    source.notes.append("the VQA models read one image: both images of a pair are joined side by side")
    return source


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(file, "give NLVR2's train.json, dev.json or test1.json")
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{file}:{number}"
        if not line.strip():
            raise UserError(f"{where}: the line is empty; is this the official file?")
        try:
            yield where, json.loads(line)
        except ValueError:
            raise UserError(f"{where}: not a JSON object; give NLVR2's official file, one object a line") from None


def _record(identifier: str, entry: Any, where: str) -> tuple[str, Record]:
    parts = identifier.split("-")
    if len(parts) != 4 or parts[0] not in SPLITS:
        raise UserError(f"{where}: identifier {identifier!r} has not the form split-set-pair-sentence; is this NLVR2?")
    sentence = take(entry, "sentence", str, where).strip()
    if not sentence:
        raise UserError(f'{where}: field "sentence" is blank')
    pair = identifier.rpartition("-")[0]
    record: Record = {"id": f"nlvr2/{identifier}", "question_id": identifier, "image": f"{pair}.jpg"}
    record |= {"question": sentence}
    if "directory" in entry:
        record["directory"] = str(entry["directory"])
    if "label" in entry:
        label = str(entry["label"]).lower()
        if label not in ("true", "false"):
            raise UserError(f'{where}: field "label" is {entry["label"]!r}; expected is True or False')
        record |= {"answers": [label] * ANSWERS, "multiple_choice_answer": label}
    return SPLITS[parts[0]], record


def join_pairs(
    source: Source,
    images: str | Path,
    output: Path,
    *,
    partial: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the joined image of every pair to ``output/pairs``; one that is there is kept.

    Args:
        source: from :func:`read`; records without a joined image are left for ``prepare`` to list.
        images: the official images, ``<pair>-img0.png`` and ``-img1.png``, in any of the official folders.
        output: the folder of the prepared dataset.
        partial: skip pairs of which an image is missing or damaged, instead of stopping.
        progress: called with the numbers of pairs done and in all.

    Raises:
        UserError: no such folder; or, without ``partial``, an image is missing or damaged.
    """
    if not Path(images).is_dir():
        raise UserError(f"{images}: no such folder; give the folder with NLVR2's images")
    found, media = MediaFolder(images), output / MEDIA
    media.mkdir(parents=True, exist_ok=True)
    pairs = {record["image"]: record for records in source.splits.values() for record in records}

    def join(pair: tuple[str, Record]) -> str | None:
        name, record = pair
        if (media / name).exists():
            return None
        try:
            sides = [open_image(_find(found, name, place, record)) for place in (0, 1)]
        except MediaError as error:
            return str(error)
        with whole_file(media / name) as temporary:
            side_by_side(*sides).save(temporary, "JPEG", quality=95)
        return None

    bad: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        for number, problem in enumerate(pool.map(join, pairs.items()), start=1):
            bad += [problem] if problem else []
            progress(number, len(pairs))
    if bad and not partial:
        fix = "correct the folder, or add --partial to leave them out"
        raise UserError(f"{len(bad)} of {len(pairs)} pairs cannot be joined: {some(bad, 3)}; {fix}")
    if bad:
        source.notes.append(f"{len(bad)} pairs cannot be joined: {some(bad, 3)}")
    for records in source.splits.values():
        for record in records:
            record.pop("directory", None)


def _find(found: MediaFolder, name: str, place: int, record: Record) -> Path:
    """The file of the left (0) or right (1) image of a pair."""
    file, split = f"{name.removesuffix('.jpg')}-img{place}.png", name.partition("-")[0]
    folders = ["", f"{split}/", *([f"{record['directory']}/"] if "directory" in record else [])]
    folders += [f"{split}/{folder}" for folder in folders[2:]]
    for folder in [f"{top}{folder}" for top in ("", "images/") for folder in folders]:
        if relative := found.find(f"{folder}{file}"):
            return found.root / relative
    return found.root / file


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Both RGB images, whole, in the halves of a black square of :data:`SIDE` pixels."""
    joined, width = Image.new("RGB", (SIDE, SIDE)), (SIDE - GAP) // 2
    for image, start in ((left, 0), (right, width + GAP)):
        small = ImageOps.contain(image, (width, SIDE), Image.Resampling.BICUBIC)
        joined.paste(small, (start + (width - small.width) // 2, (SIDE - small.height) // 2))
    return joined
