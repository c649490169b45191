"""TVSum highlights: ``tvsum_anno.json``, ``{video: {"title", "anno": [[20 scores of 1..5] for each clip]}}``.

Fifty videos of ten domains. The published protocol trains one model per domain on four videos and validates it on the
fifth: every domain has splits ``train_<domain>`` and ``val_<domain>`` beside ``train`` and ``val`` of all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlkit.data.records import Record
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.common import take
from vlkit.data.sources.moment_lines import clean
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError
from vlkit.files import read_json

ANNOTATORS, LOWEST, HIGHEST = 20, 1, 5
DOMAINS: dict[str, str] = {
    "BK": "WxtbjNsCQ8A EE-bNr36nyA oDXZc0tZe04 uGu_10sucQo Se3oxnaPsz0",
    "BT": "eQu1rNs0an0 qqR6AEXwxoQ EYqVtI9YWJA iVt07TCkFM0 JgHubY5Vw3Y",
    "DS": "kLxoNp-UchI NyBmCxDoHJU jcoYJXDG9sw -esJrBWj2d8 E11zDS9XGzg",
    "FM": "_xMr-HKMfVA byxOvuiIJV0 VuWGsYPqAX8 xmEERLqJ2kU JKpqYvAdIsw",
    "GA": "xxdtq8mxegs i3wAGJaaktw 0tmA_C6XwfM 3eYKfiOEJNs Bhxk-O1Y7Ho",
    "MS": "Hl-__g2gn_A WG0MBPpPC6I LRw_obCPUt0 37rzWOQsNIw Yi4Ij2NM7U4",
    "PK": "GsAD1KT1xo8 XkqCExn6_Us b626MiF1ew4 PJrm840pAUI cjibtmSLxQ4",
    "PR": "RBCABdttQmI z_6gVvQb2d0 4wU_LUjG5Ic 91IHQYk1IQM fWutDQy1nnY",
    "VT": "gzDbaEs1Rlg XzYM3PfTM4w 98MoyGZKHXc AwmHb44_ouw J0nA4VgnoCo",
    "VU": "akI8YFjEmUw HT5vyqe0Xaw vdmoEJ5YbrQ xwqBXPGE9pQ sTEELN-vY30",
}
"""Videos of each domain; the last one validates."""
FOLDERS = ("videos", "video", "ydata-tvsum50-video")


def read(annotations: str | Path) -> Source:
    """Read ``tvsum_anno.json``, or the folder that holds it.

    Raises:
        UserError: the file is missing or an entry is wrong; the message names file and video.
    """
    path = Path(annotations)
    path = path / "tvsum_anno.json" if path.is_dir() else path
    source = Source(
        "tvsum", "moment_retrieval", {}, {"annotations": str(path.resolve())}, elsewhere=other_clips(FOLDERS)
    )
    known = {video: (domain, k == 4) for domain, row in DOMAINS.items() for k, video in enumerate(row.split())}
    unknown = []
    for video, entry in read_object(path).items():
        record = _record(video, entry, f"{path}: {video}")
        if video not in known:
            unknown.append(video)
            add(source, "train", record)
            continue
        domain, validates = known[video]
        split = "val" if validates else "train"
        add(source, split, record)
        add(source, f"{split}_{domain}", record)
    if unknown:
        source.notes.append(f"{len(unknown)} videos are not of the published lists; they were added to train")
    return source


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that is not empty.

    Raises:
        UserError: the file is missing or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected is an object {{video: annotations}}; is this the official file?")
    return content


def add(source: Source, split: str, record: Record) -> None:
    """Add a record to a split and count it."""
    source.splits.setdefault(split, []).append(record)
    source.counts[split] = (len(source.splits[split]), len(source.splits[split]))


def _record(video: str, entry: Any, where: str) -> Record:
    scores, title = take(entry, "anno", list, where), take(entry, "title", str, where)
    fine = all(isinstance(row, list) and len(row) == ANNOTATORS for row in scores)
    if not scores or not fine or not all(s in range(LOWEST, HIGHEST + 1) for row in scores for s in row):
        raise UserError(f'{where}: field "anno" does not hold {ANNOTATORS} scores of {LOWEST}..{HIGHEST} for each clip')
    whole = [[int(score) for score in row] for row in scores]
    return {
        "id": f"tvsum/{video}",
        "video": f"{video}.mp4",
        "vid": video,
        "text": clean(title) or video,
        "scores": whole,
    }
