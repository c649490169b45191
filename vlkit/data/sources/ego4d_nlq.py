"""Ego4D natural language queries: ``nlq_{train,val}.json`` as released, or files in the form of QVHighlights.

A released file holds videos with clips, each with annotations and their queries; times count from the start of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlkit.data.records import Record
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.common import take
from vlkit.data.sources.moment_lines import SPLITS, add_lines, clean, find_files, seconds, windows_problem
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError
from vlkit.files import read_json

NAMES = {
    split: (f"nlq_{split}.json", f"nlq_{split}.jsonl", f"{split}.jsonl", f"nlq_{split}_unannotated.json")
    for split in SPLITS
}
SETTINGS = {"fps": 0.5, "unit": 0.0, "nms": "linear"}
FOLDERS = ("clips", "videos")


def read(annotations: str | Path) -> Source:
    """Read the folder with the files; splits whose file is missing are left out.

    Raises:
        UserError: no file is there, or an entry is wrong; the message names file and place.
    """
    folder = Path(annotations)
    files = find_files(folder, NAMES, "nlq_train.json, nlq_val.json (or .jsonl)")
    inputs = {"annotations": str(folder.resolve()), **SETTINGS}
    source = Source("ego4d_nlq", "moment_retrieval", {}, inputs, elsewhere=other_clips(FOLDERS))
    for split, path in files.items():
        if path.suffix == ".jsonl":
            add_lines(source, split, path)
        else:
            _add_released(source, split, path)
    return source


def _add_released(source: Source, split: str, path: Path) -> None:
    content = read_json(path)
    records = source.splits.setdefault(split, [])
    empty = 0
    for where, clip, annotation, number, query in _queries(content, path):
        text = clean("" if query.get("query") is None else take(query, "query", str, where))
        if not text:
            empty += 1  # the release has a few queries without a text
            continue
        name = f"{clip['clip_uid']}_{annotation.get('annotation_uid', '')}_{number}"
        record: Record = {"id": f"ego4d_nlq/{name}", "qid": name, "video": f"{clip['clip_uid']}.mp4"}
        record |= {"vid": clip["clip_uid"], "text": text}
        if "clip_start_sec" in query or "clip_end_sec" in query:
            record["windows"] = [
                [seconds(query.get(f"clip_{end}_sec"), f"clip_{end}_sec", where) for end in ("start", "end")]
            ]
        if "video_start_sec" in clip and "video_end_sec" in clip:
            first, last = (seconds(clip[f"video_{end}_sec"], f"video_{end}_sec", where) for end in ("start", "end"))
            record["duration"] = last - first
        problem = windows_problem(record)
        if problem:
            source.wrong.append(f"{where}: {problem}")
        else:
            records.append(record)
    source.blank_texts += empty
    source.counts[split] = (len({record["video"] for record in records}), len(records))


def _queries(content: Any, path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], int, dict[str, Any]]]:
    """(place, clip, annotation, number, query) of every query."""
    for index, video in enumerate(take(content, "videos", list, str(path))):
        for clip in take(video, "clips", list, f"{path}: videos[{index}]"):
            where = f"{path}: clip {clip.get('clip_uid') if isinstance(clip, dict) else clip}"
            take(clip, "clip_uid", str, where)
            for annotation in take(clip, "annotations", list, where):
                for number, query in enumerate(take(annotation, "language_queries", list, where)):
                    if not isinstance(query, dict):
                        raise UserError(f"{where}: a query is not a JSON object; is this the official file?")
                    yield f"{where}, query {number}", clip, annotation, number, query
