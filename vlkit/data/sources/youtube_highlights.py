"""YouTube Highlights: ``youtube_anno.json``, ``{video: {"frames", "fps", "match": [-1, 0 or 1 per clip], "info"}}``.

Entry 5 of ``info`` is the query, which is also the domain (dog, gymnastics, parkour, skating, skiing, surfing). The
published protocol trains one model per domain: every domain has splits ``train_<domain>`` and ``val_<domain>`` beside
``train`` and ``val`` of all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlkit.data.records import Record
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.common import take
from vlkit.data.sources.moment_lines import clean, seconds
from vlkit.data.sources.prepare import Source
from vlkit.data.sources.tvsum import add, read_object
from vlkit.errors import UserError, some

QUERY = 5
FOLDERS = ("videos", "video")
EVERY = 3
"""Without lists, one video in three of each domain validates (published: 24 of 68 dogs)."""


def read(annotations: str | Path, splits: str | Path | None = None) -> Source:
    """Read ``youtube_anno.json``, or the folder that holds it.

    Args:
        annotations: the file or its folder.
        splits: JSON ``{domain: {"train": [videos], "val": [videos]}}``, the lists of the protocol that is followed;
            None: every third video of a domain, in order of its id, validates.

    Raises:
        UserError: a file is missing or an entry is wrong; the message names file and video.
    """
    path = Path(annotations)
    path = path / "youtube_anno.json" if path.is_dir() else path
    inputs = {"annotations": str(path.resolve()), "splits": None if splits is None else str(Path(splits).resolve())}
    source = Source("youtube_highlights", "moment_retrieval", {}, inputs, elsewhere=other_clips(FOLDERS))
    domains: dict[str, dict[str, Record]] = {}
    for video, entry in read_object(path).items():
        record = _record(video, entry, f"{path}: {video}")
        domains.setdefault(record["text"], {})[video] = record
    if splits is None:
        lists = {name: _every_third(sorted(records)) for name, records in domains.items()}
        source.notes.append("no --splits: every third video of a domain validates, which is not the published list")
    else:
        lists = _lists(Path(splits))
    for domain, parts in lists.items():
        _add_domain(
            source, domain, parts, {v: r for own in domains.values() for v, r in own.items()}, str(splits or path)
        )
    return source


def _add_domain(
    source: Source, domain: str, parts: dict[str, list[str]], records: dict[str, Record], where: str
) -> None:
    unknown = [video for videos in parts.values() for video in videos if video not in records]
    if unknown:
        raise UserError(f"{where}: {domain}: {some(unknown)} are not in the annotations; use lists of the same release")
    name = re.sub(r"[^\w.-]+", "_", domain)
    for split in ("train", "val"):
        for video in parts.get(split, []):
            add(source, split, records[video])
            add(source, f"{split}_{name}", records[video])


def _every_third(videos: list[str]) -> dict[str, list[str]]:
    val = videos[EVERY - 1 :: EVERY]
    return {"train": [video for video in videos if video not in set(val)], "val": val}


def _lists(path: Path) -> dict[str, dict[str, list[str]]]:
    content = read_object(path)
    for domain, parts in content.items():
        for split in ("train", "val"):
            videos = take(parts, split, list, f"{path}: {domain}")
            if not all(isinstance(video, str) for video in videos):
                raise UserError(f"{path}: {domain}: {split} is not a list of video ids")
    return content


def _record(video: str, entry: Any, where: str) -> Record:
    match, info = take(entry, "match", list, where), take(entry, "info", list, where)
    if not match or any(value not in (-1, 0, 1) for value in match):
        raise UserError(f'{where}: field "match" is not a list of -1, 0 or 1 for each clip')
    if len(info) <= QUERY or not isinstance(info[QUERY], str) or not clean(info[QUERY]):
        raise UserError(f'{where}: field "info" has no query at place {QUERY}; is this the official file?')
    record: Record = {"id": f"youtube_highlights/{video}", "video": f"{video}.mp4", "vid": video}
    record |= {"text": clean(info[QUERY]), "match": [int(value) for value in match]}
    frames, fps = entry.get("frames"), entry.get("fps")
    if frames and fps:
        rate = seconds(fps, "fps", where)
        if rate <= 0:
            raise UserError(f'{where}: field "fps" is {fps!r}, not above 0; correct the file')
        record["duration"] = seconds(frames, "frames", where) / rate
    return record
