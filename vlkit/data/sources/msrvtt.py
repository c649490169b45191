"""MSR-VTT: ``MSRVTT_data.json`` with the 1k-A protocol (9k or 7k training list) or the official splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.common import take, take_id
from vlkit.data.sources.prepare import Counts, Source, add_record, compare_counts
from vlkit.data.sources.table import table_rows
from vlkit.errors import UserError, some
from vlkit.files import read_json

Split = Literal["9k", "7k", "full"]
TEST_LIST = "MSRVTT_JSFUSION_test.csv"
TEST_COUNTS = (1_000, 1_000)
OFFICIAL: dict[str, Counts] = {
    "9k": {"train": (9_000, 180_000), "test": TEST_COUNTS},
    "7k": {"train": (7_010, 140_200), "test": TEST_COUNTS},
    "full": {"train": (6_513, 130_260), "val": (497, 9_940), "test": (2_990, 59_800)},
}
"""Protocol -> clips and sentences per split."""
VIDEO_FOLDERS = ("videos", "all", "videos/all", "TrainValVideo", "TestVideo")
"""Sub-folders in which known copies of the dataset store the clips."""
_FIX = "give the folder with MSR-VTT's lists by --csv"
_SPLITS = {"train": "train", "validate": "val", "test": "test"}


@dataclass
class _Clip:
    """A clip of the JSON file: its record without texts, its official split and its captions with their ids."""

    record: dict[str, Any]
    split: str
    captions: list[tuple[int, str]]

    @property
    def texts(self) -> list[str]:
        """Captions sorted by id, because the file's order is arbitrary."""
        return [text for _, text in sorted(self.captions)]


def read(annotations: str | Path, csv: str | Path | None = None, split: Split = "9k") -> Source:
    """Read MSR-VTT for video retrieval.

    Args:
        annotations: ``MSRVTT_data.json``.
        csv: folder with ``MSRVTT_train.9k.csv``, ``MSRVTT_train.7k.csv`` and ``MSRVTT_JSFUSION_test.csv``; None =
            beside ``annotations``. Not needed for ``full``.
        split: ``9k`` and ``7k`` are the 1k-A protocol: training clips of that list with all their captions, and test
            clips with the one sentence of the test list. ``full``: the official train, validate (``val``) and test
            clips, all captions each.

    Raises:
        UserError: a file is missing or wrong; the message names file, record and field. Also if a clip is in the
            training and the test list.
    """
    annotations = Path(annotations)
    folder = annotations.parent if csv is None else Path(csv)
    clips = _read_clips(annotations)
    inputs = {"annotations": str(annotations.resolve()), "split": split}
    source = Source("msrvtt", "video_retrieval", {}, inputs, elsewhere=other_clips(VIDEO_FOLDERS))
    if split == "full":
        for name in _SPLITS.values():
            for clip in clips.values():
                if clip.split == name:
                    add_record(source, name, clip.record, clip.texts)
    else:
        inputs["csv"] = str(folder.resolve())
        _read_lists(folder, split, clips, annotations, source)
    source.notes += compare_counts(source, OFFICIAL[split])
    return source


def _read_clips(path: Path) -> dict[str, _Clip]:
    """Clips of the JSON file by id, in file order."""
    content = read_json(path)
    clips: dict[str, _Clip] = {}
    for index, video in enumerate(take(content, "videos", list, f"{path}")):
        where = f"{path}: videos[{index}]"
        video_id = take(video, "video_id", str, where)
        if video_id in clips:
            raise UserError(f'{where}: field "video_id": "{video_id}" occurs twice; is this the official file?')
        name = take(video, "split", str, where)
        if name not in _SPLITS:
            raise UserError(f'{where}: field "split" is "{name}"; known are {", ".join(_SPLITS)}')
        record = {"id": f"msrvtt/{video_id}", "video": f"{video_id}.mp4", **_times(video, where)}
        clips[video_id] = _Clip(record, _SPLITS[name], [])
    for index, sentence in enumerate(take(content, "sentences", list, f"{path}")):
        where = f"{path}: sentences[{index}]"
        video_id = take(sentence, "video_id", str, where)
        if video_id not in clips:
            raise UserError(f'{where}: field "video_id": there is no video "{video_id}" in this file; is it complete?')
        caption = (take_id(sentence, "sen_id", where), take(sentence, "caption", str, where))
        clips[video_id].captions.append(caption)
    return clips


def _times(video: dict[str, Any], where: str) -> dict[str, float]:
    """``start`` and ``end`` in the clip's file: it is already cut, so the stated times only give its length."""
    if "start time" not in video and "end time" not in video:
        return {}
    start, end = (take(video, name, (int, float), where) for name in ("start time", "end time"))
    if end <= start:
        raise UserError(f'{where}: field "end time" is {end}, not after "start time" ({start}); correct the times')
    return {"start": 0.0, "end": round(end - start, 3)}


def _read_lists(folder: Path, split: str, clips: dict[str, _Clip], annotations: Path, source: Source) -> None:
    train_list, test_list = folder / f"MSRVTT_train.{split}.csv", folder / TEST_LIST
    rows = {path: _read_rows(path, clips, annotations) for path in (train_list, test_list)}
    both = [video_id for video_id in rows[test_list] if video_id in rows[train_list]]
    if both:
        raise UserError(f"{train_list}: {len(both)} videos are in {test_list.name} too: {some(both)}; use other lists")
    for video_id in rows[train_list]:
        add_record(source, "train", clips[video_id].record, clips[video_id].texts)
    foreign = []
    for video_id, row in rows[test_list].items():
        sentence = row["sentence"]
        add_record(source, "test", clips[video_id].record, [sentence])
        captions = {text.strip() for _, text in clips[video_id].captions}
        if sentence.strip() not in captions:
            foreign.append(video_id)
    if foreign:
        notes = f"the test sentences of {len(foreign)} videos are not among their captions in {annotations.name}"
        source.notes.append(f"{notes}: {some(foreign)}")


def _read_rows(path: Path, clips: dict[str, _Clip], annotations: Path) -> dict[str, dict[str, str]]:
    """Rows of a list by ``video_id``, in file order; the test list has the column ``sentence`` as well."""
    needed = ("video_id", "sentence") if path.name == TEST_LIST else ("video_id",)
    rows: dict[str, dict[str, str]] = {}
    for where, row in table_rows(path, _FIX, filled=needed):
        video_id = row["video_id"].strip()
        if video_id not in clips:
            raise UserError(f'{where}: column "video_id": no video "{video_id}" in {annotations}')
        if video_id in rows:
            raise UserError(f'{where}: column "video_id": "{video_id}" occurs twice; remove one')
        rows[video_id] = row
    if not rows:
        raise UserError(f"{path}: holds no videos; is the download complete?")
    return rows
