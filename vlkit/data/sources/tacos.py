"""TACoS: ``{train,val,test}.jsonl`` in the form of QVHighlights, or ``{train,val,test}.json`` with times in frames.

The latter maps a video to ``{"timestamps": [[first, last], ...], "sentences": [...], "fps", "num_frames"}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlkit.data.records import Record
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.common import take
from vlkit.data.sources.moment_lines import SPLITS, add_lines, clean, find_files, seconds, windows_problem
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError
from vlkit.files import read_json

NAMES = {split: (f"{split}.jsonl", f"tacos_{split}.jsonl", f"{split}.json", f"tacos_{split}.json") for split in SPLITS}
SETTINGS = {"fps": 0.5, "unit": 0.0, "nms": "linear"}
CAMERA = "-cam-002"
"""Suffix of the published videos' names."""
FOLDERS = ("videos", "TACoS", "tacos")


def read(annotations: str | Path) -> Source:
    """Read the folder with the files; splits whose file is missing are left out.

    Raises:
        UserError: no file is there, or an entry is wrong; the message names file and place.
    """
    folder = Path(annotations)
    files = find_files(folder, NAMES, "train.jsonl, val.jsonl, test.jsonl (or .json)")
    inputs = {"annotations": str(folder.resolve()), **SETTINGS}
    source = Source("tacos", "moment_retrieval", {}, inputs, elsewhere=_elsewhere)
    for split, path in files.items():
        if path.suffix == ".jsonl":
            add_lines(source, split, path, f"{CAMERA}.mp4", strip=CAMERA)
        else:
            _add_frames(source, split, path)
    return source


def _elsewhere(path: str) -> Any:
    yield from other_clips(FOLDERS)(path)
    yield from other_clips(FOLDERS)(path.replace(CAMERA, ""))


def _add_frames(source: Source, split: str, path: Path) -> None:
    """Records of a file with times in frames."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected is an object {{video: timestamps and sentences}}")
    records = source.splits.setdefault(split, [])
    for name, entry in content.items():
        where, vid = f"{path}: {name}", name.rpartition(".")[0] or name
        fps = seconds(take(entry, "fps", (int, float), where), "fps", where)
        times, texts = take(entry, "timestamps", list, where), take(entry, "sentences", list, where)
        if len(times) != len(texts) or fps <= 0:
            raise UserError(f"{where}: {len(times)} timestamps and {len(texts)} sentences at {fps:g} frames a second")
        for number, (window, text) in enumerate(zip(times, texts, strict=True)):
            if not isinstance(window, list) or len(window) != 2 or not isinstance(text, str):
                raise UserError(f"{where}: sentence {number}: expected are [first frame, last frame] and a text")
            ends = [seconds(frame, "timestamps", where) / fps for frame in window]
            record: Record = {"id": f"tacos/{split}/{vid}/{number}", "qid": f"{split}/{vid}/{number}", "vid": vid}
            record |= {"video": f"{vid}{CAMERA}.mp4", "text": clean(text), "windows": [ends]}
            if "num_frames" in entry:
                record["duration"] = seconds(entry["num_frames"], "num_frames", where) / fps
            problem = windows_problem(record)
            if problem:
                source.wrong.append(f"{where}: sentence {number}: {problem}")
            elif not record["text"]:
                source.blank_texts += 1
            else:
                records.append(record)
    source.counts[split] = (len({record["video"] for record in records}), len(records))
