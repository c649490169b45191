"""Charades-STA: ``charades_sta_train.txt`` and ``charades_sta_test.txt``, lines ``<video> <start> <end>##<sentence>``.

Lengths of the videos come from ``Charades_v1_train.csv`` and ``Charades_v1_test.csv`` (column ``length``), if they are
in the same folder. Some windows end after their video; they are kept, because readers of windows repair them.
"""

from __future__ import annotations

from pathlib import Path

from vlkit.data.records import Record
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.moment_lines import clean, find_files, seconds, windows_problem
from vlkit.data.sources.prepare import Counts, Source, compare_counts
from vlkit.data.sources.table import table_rows
from vlkit.errors import UserError
from vlkit.files import read_text, text_lines

OFFICIAL: Counts = {"train": (5_338, 12_408), "test": (1_334, 3_720)}
NAMES = {split: (f"charades_sta_{split}.txt",) for split in OFFICIAL}
SETTINGS = {"fps": 1.0, "unit": 0.1, "nms": "linear"}
FOLDERS = ("Charades_v1_480", "Charades_v1", "videos")
_FORM = "<video> <start> <end>##<sentence>"


def read(annotations: str | Path) -> Source:
    """Read the folder with both lists.

    Raises:
        UserError: no list is there, or a line is wrong; the message names file and line.
    """
    folder = Path(annotations)
    files = find_files(folder, NAMES, "charades_sta_train.txt, charades_sta_test.txt")
    inputs = {"annotations": str(folder.resolve()), **SETTINGS}
    source = Source("charades_sta", "moment_retrieval", {}, inputs, elsewhere=other_clips(FOLDERS))
    lengths = _lengths(next(iter(files.values())).parent)
    beyond = 0
    for split, path in files.items():
        records = source.splits[split] = []
        for number, line in enumerate(text_lines(read_text(path, f"lines {_FORM}")), start=1):
            if line.strip():
                record = _record(line, f"{path}:{number}", f"{split}/{number}", lengths)
                problem = windows_problem(record)
                if problem:
                    source.wrong.append(f"{path}:{number}: {problem}")
                else:
                    records.append(record)
                    beyond += record["windows"][0][1] > record.get("duration", float("inf"))
        if not records:
            raise UserError(f"{path}: holds no lines {_FORM}; is the download complete?")
        source.counts[split] = (len({record["video"] for record in records}), len(records))
    if beyond:
        source.notes.append(f"{beyond} windows end after their video; training and prediction clamp them")
    source.notes += compare_counts(source, OFFICIAL)
    return source


def _record(line: str, where: str, name: str, lengths: dict[str, float]) -> Record:
    times, mark, sentence = line.partition("##")
    fields = times.split()
    if not mark or len(fields) != 3 or not clean(sentence):
        raise UserError(f"{where}: expected is {_FORM}, got {line.strip()[:60]!r}; is this the official file?")
    video, start, end = fields
    window = [seconds(start, "start", where), seconds(end, "end", where)]
    record: Record = {"id": f"charades_sta/{name}", "qid": name, "video": f"{video}.mp4", "vid": video}
    record |= {"text": clean(sentence), "windows": [window]}
    return record | ({"duration": lengths[video]} if video in lengths else {})


def _lengths(folder: Path) -> dict[str, float]:
    """Video -> seconds, from the tables that are there."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("Charades_v1_*.csv")):
        for where, row in table_rows(path, "replace it by the official file"):
            if "id" not in row or "length" not in row:
                break  # a table of classes
            found[row["id"]] = seconds(row["length"], "length", where)
    return found
