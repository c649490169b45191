"""Moment sets in the form of QVHighlights: JSONL files with a query and its windows in each line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlkit.data.records import Record
from vlkit.data.sources.common import take, whole_number
from vlkit.data.sources.prepare import Source
from vlkit.data.sources.table import json_rows
from vlkit.errors import UserError

SPLITS = ("train", "val", "test")
CLIP_SECONDS = 2
FORM = '{"qid", "query", "vid", "duration", "relevant_windows"}'


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, object) of each line of a JSONL file that is not blank.

    Raises:
        UserError: the file is missing or empty, or a line is not a JSON object.
    """
    found = False
    for row in json_rows(path, FORM):
        found = True
        yield row
    if not found:
        raise UserError(f"{path}: holds no lines; is the download complete?")


def add_lines(source: Source, split: str, path: Path, suffix: str = ".mp4", strip: str = "") -> None:
    """Add the records of a file to a split; wrong windows and saliency are noted in ``source.wrong``.

    Args:
        source: gets the records; their ids are ``<source.name>/<qid>``.
        split: name of the split.
        path: JSONL file.
        suffix: added to ``vid`` for the name of the video.
        strip: removed from the end of ``vid`` before.
    """
    records = source.splits.setdefault(split, [])
    seen: set[Any] = {record["qid"] for records in source.splits.values() for record in records}
    for where, line in read_lines(path):
        record = _record(source, where, line, suffix, strip)
        if record["qid"] in seen:
            raise UserError(f'{where}: field "qid": {record["qid"]!r} occurs twice; remove one')
        seen.add(record["qid"])
        problem = windows_problem(record)
        if problem:
            source.wrong.append(f"{where}: {problem}")
        elif not record["text"]:
            source.blank_texts += 1
        else:
            records.append(record)
    source.counts[split] = (len({record["video"] for record in records}), len(records))


def _record(source: Source, where: str, line: Mapping[str, Any], suffix: str, strip: str) -> Record:
    qid = line.get("qid")
    if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
        raise UserError(f'{where}: field "qid" is {qid!r}; expected is a whole number or a text')
    vid = take(line, "vid", str, where).removesuffix(strip)
    record: Record = {"id": f"{source.name}/{qid}", "qid": qid, "video": f"{vid}{suffix}", "vid": vid}
    record["text"] = clean(take(line, "query", str, where))
    if line.get("duration") is not None:
        record["duration"] = seconds(line["duration"], "duration", where)
    if line.get("relevant_windows") is not None:
        windows = take(line, "relevant_windows", list, where)
        record["windows"] = [_window(window, where) for window in windows]
    if line.get("saliency_scores") is not None:
        record["clip_ids"] = take(line, "relevant_clip_ids", list, where)
        record["saliency"] = take(line, "saliency_scores", list, where)
    return record


def clean(text: str) -> str:
    """A sentence without blanks around it and inside it doubled; lone surrogates become "?"."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def seconds(value: Any, field: str, where: str) -> float:
    """A finite number; a text that spells one is accepted too.

    Raises:
        UserError: it is neither; the message names place and field.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f'{where}: field "{field}" is {str(value)[:40]!r}; expected is a number of seconds')
    return number


def _window(value: Any, where: str) -> list[float]:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f'{where}: field "relevant_windows" holds {str(value)[:40]}; expected are [start, end]')
    return [seconds(edge, "relevant_windows", where) for edge in value]


def windows_problem(record: Record) -> str | None:
    """What is wrong with the windows or the saliency of a record, which training cannot repair; None if nothing.

    Reversed ends and ends outside the video are repaired when they are read, so they are not wrong.
    """
    duration = record.get("duration", math.inf)
    if duration <= 0:
        return f"duration is {duration:g} s, not above 0"
    for start, end in record.get("windows") or ():
        if max(start, end) <= 0 or min(start, end) >= duration:
            return f"window [{start:g}, {end:g}] lies outside the video of {duration:g} s"
    clips, scores = record.get("clip_ids"), record.get("saliency")
    if clips is None or scores is None:
        return None
    if len(clips) != len(scores):
        return f"{len(scores)} saliency scores for {len(clips)} clips"
    if any(whole_number(clip) is None for clip in clips):
        return "a clip id is not a whole number"
    fine = all(
        isinstance(each, list) and each and all(isinstance(s, int) and 0 <= s <= 4 for s in each) for each in scores
    )
    return None if fine else "saliency scores are not lists of whole numbers 0..4"


def find_files(folder: Path, patterns: Mapping[str, tuple[str, ...]], what: str) -> dict[str, Path]:
    """The file of each split: the first that exists of its names.

    Args:
        folder: a folder, or one of the files itself, whose folder is then searched.
        patterns: split -> possible names.
        what: names in the message.

    Raises:
        UserError: there is no file of any split.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give the one that holds {what}")
    folder = folder if folder.is_dir() else folder.parent
    found = {
        split: next((folder / name for name in names if (folder / name).is_file()), None)
        for split, names in patterns.items()
    }
    there = {split: path for split, path in found.items() if path is not None}
    if not there:
        raise UserError(f"{folder}: holds none of {what}")
    return there
