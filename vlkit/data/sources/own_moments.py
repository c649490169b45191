"""Your own moments: a table with the columns video, start, end and text, and perhaps split."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlkit.data.records import Record
from vlkit.data.sources.moment_lines import clean, seconds
from vlkit.data.sources.named_splits import plain_split
from vlkit.data.sources.prepare import Source
from vlkit.data.sources.table import table_rows
from vlkit.errors import UserError

COLUMNS = ("video", "start", "end", "text")
SHARES = {"val": 0.1, "test": 0.1}
"""Shares of the videos in each split, where the table has no column split."""
_FIX = f"expected is a table (CSV) with the columns {', '.join(COLUMNS)}"


def read(annotations: str | Path) -> Source:
    """Read a CSV file. Rows of the same video and text are the windows of one query.

    Without a column ``split``, one video in ten is for validation and one in ten for testing, chosen by a hash of its
    name; with fewer than three videos, all are in every split.

    Raises:
        UserError: the file is missing, or a row is wrong; the message names file and line.
    """
    path = Path(annotations)
    source = Source("own_moments", "moment_retrieval", {}, {"annotations": str(path.resolve()), "fps": 0.5})
    found: dict[tuple[str, str], Record] = {}
    splits: dict[str, str] = {}
    for where, row in table_rows(path, _FIX, filled=COLUMNS, lower=True):
        _add(source, found, splits, row, where)
    if not found:
        raise UserError(f"{path}: holds no rows; {_FIX}")
    _distribute(source, list(found.values()), splits)
    return source


def _add(
    source: Source, found: dict[tuple[str, str], Record], splits: dict[str, str], row: dict[str, str], where: str
) -> None:
    video, text = row["video"].strip(), clean(row["text"])
    start, end = seconds(row["start"], "start", where), seconds(row["end"], "end", where)
    if start < 0 or end <= start:
        source.wrong.append(f"{where}: start {start:g} and end {end:g}: start must be 0 or more and before the end")
        return
    split = (row.get("split") or "").strip()
    split = plain_split(split) if split else ""
    if split and splits.setdefault(video, split) != split:
        raise UserError(f'{where}: "{video}" is in split {splits[video]!r} and in {split!r}; use one split for a video')
    number = len(found)
    record = found.setdefault((video, text), {"id": f"own/{number}", "qid": number, "video": video, "text": text})
    record.setdefault("windows", []).append([start, end])


def _distribute(source: Source, records: list[Record], splits: dict[str, str]) -> None:
    videos = sorted({record["video"] for record in records}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if not splits and len(videos) < 3:
        source.notes.append(f"{len(videos)} videos are too few for separate splits: every split holds all of them")
        source.splits = {split: list(records) for split in ("train", "val", "test")}
    else:
        if not splits:
            first = 0
            for split, share in SHARES.items():
                count = max(1, round(share * len(videos)))
                splits |= dict.fromkeys(videos[first : first + count], split)
                first += count
            source.notes.append("no column split: videos were distributed over train, val and test by a hash")
        for record in records:
            source.splits.setdefault(splits.get(record["video"], "train"), []).append(record)
    source.counts = {s: (len({r["video"] for r in own}), len(own)) for s, own in source.splits.items()}
