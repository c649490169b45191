"""NLVR2: ``train.json``, ``dev.json``, ``test1.json``, an object a line; each sentence is about a pair of images.

The lists that LXMERT and VL-T5 made of them, with ``sent``, ``img0`` and labels 0 and 1, are read too.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlkit.data.records import ANSWERS, SECOND, Record
from vlkit.data.sources.common import take
from vlkit.data.sources.prepare import Source
from vlkit.data.sources.table import json_rows
from vlkit.errors import UserError
from vlkit.files import read_json, read_text

SPLITS = {"train": "train", "dev": "val", "test1": "test", "test": "test", "test2": "test_unreleased"}
"""Name in a file and in its identifiers -> split."""
FORM = '{"identifier": …, "sentence": …, "label": …}'
OFFICIAL = {"train": 86_373, "val": 6_982, "test": 6_967, "test_unreleased": 6_970}


def read(files: Sequence[str | Path]) -> Source:
    """Read NLVR2's sentences, each about a pair of images; labels become the answers ``true`` and ``false``, ten times
    each.

    Args:
        files: official files, one per split; identifiers give the split.

    Raises:
        UserError: a file is missing or another one, a line is wrong, or an identifier occurs twice.
    """
    inputs = {"sentences": [str(Path(file).resolve()) for file in files]}
    source = Source("nlvr2", "vqa", {}, inputs, elsewhere=_other_folders, extra={"images": 2})
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
        source.counts[split] = (2 * len({record["image"] for record in records}), len(records))
        if OFFICIAL[split] // 2 < len(records) != OFFICIAL[split]:
            source.notes.append(
                f'split "{split}" has {len(records):,} sentences, the official file {OFFICIAL[split]:,}'
            )
    return source


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(file, "give NLVR2's train.json, dev.json or test1.json")
    if text.lstrip().startswith("["):
        yield from _listed(file)
        return
    yield from json_rows(file, FORM, blank_rows="refuse")


def _listed(file: Path) -> Iterator[tuple[str, Any]]:
    """Entries of a preprocessed list, with the official names of their fields."""
    for number, entry in enumerate(read_json(file)):
        where = f"{file}: [{number}]"
        official = {"identifier": take(entry, "identifier", str, where), "sentence": take(entry, "sent", str, where)}
        if "label" in entry:
            official["label"] = ("False", "True")[int(entry["label"])] if entry["label"] in (0, 1) else entry["label"]
        yield where, official


def _record(identifier: str, entry: Any, where: str) -> tuple[str, Record]:
    parts = identifier.split("-")
    if len(parts) != 4 or parts[0] not in SPLITS:
        raise UserError(f"{where}: identifier {identifier!r} has not the form split-set-pair-sentence; is this NLVR2?")
    sentence = take(entry, "sentence", str, where).strip()
    if not sentence:
        raise UserError(f'{where}: field "sentence" is blank')
    pair = identifier.rpartition("-")[0]
    folder = posixpath.join("images", parts[0], str(entry.get("directory", "")))
    record: Record = {"id": f"nlvr2/{identifier}", "question_id": identifier}
    record |= {name: posixpath.join(folder, f"{pair}-img{i}.png") for i, name in enumerate(("image", SECOND))}
    record["question"] = sentence
    if "label" in entry:
        label = str(entry["label"]).lower()
        if label not in ("true", "false"):
            raise UserError(f'{where}: field "label" is {entry["label"]!r}; expected is True or False')
        record |= {"answers": [label] * ANSWERS, "multiple_choice_answer": label}
    return SPLITS[parts[0]], record


def _other_folders(stated: str) -> list[str]:
    """Other places of an image stated as ``images/train/<directory>/<file>`` or ``images/dev/<file>``: copies leave out
    some of the folders.
    """
    *folders, file = stated.split("/")
    kept = [some for size in reversed(range(len(folders))) for some in itertools.combinations(folders, size)]
    return ["/".join((*some, file)) for some in kept]
