"""The demo world's clips in the official files of MSR-VTT, with all of its splits."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.drawn.videos import Video, draw_videos, write_clips
from vlkit.drawn.world import World, generator
from vlkit.files import write_text

INFO = {
    "contributor": "vlkit",
    "data_created": "2024-01-01 00:00:00",
    "version": "1.0",
    "description": "vlkit demo world: drawn clips with sentences, in the format of MSR-VTT",
    "year": "2024",
}
ANIMATION = 8
"""MSR-VTT's category of cartoons."""
PER_IMAGE = {"train": 0.15, "test": 0.2}
"""Clips per image of the split: 60 + 20 in a small world, 300 + 100 in a medium one, 1,500 + 200 in a large one."""
SEVEN_OF_NINE = 7010 / 9000
"""Share of the 9k list that is in the 7k list, as in MSR-VTT; the rest of it is official test."""
VALIDATE = 497 / 7010
"""Share of the 7k list that is official validation."""
FILE_STREAM = 42


def write_msrvtt(world: World, folder: Path) -> None:
    """Draw clips and write ``videos/``, ``MSRVTT_data.json``, the lists ``MSRVTT_*.csv`` and ``clips_*.jsonl``."""
    counts = clip_counts(world)
    videos = draw_videos(world.seed, counts, folder, world.side, world.workers)
    train = [video for video in videos if video.split == "train"]
    test = [video for video in videos if video.split == "test"]
    rng = generator(world.seed, "train", 0, FILE_STREAM)
    write_text(folder / "MSRVTT_data.json", json.dumps(described(videos, rng)) + "\n")
    write_text(folder / "MSRVTT_train.9k.csv", _table(["video_id"], [[v.video_id] for v in train]))
    write_text(folder / "MSRVTT_train.7k.csv", _table(["video_id"], [[v.video_id] for v in train[: seven(train)]]))
    # The last sentence mentions every event; a plain one ("a ball moves") would fit many clips.
    rows = [[f"ret{i}", f"msr{v.number}", v.video_id, v.sentences[-1]] for i, v in enumerate(test)]
    write_text(folder / "MSRVTT_JSFUSION_test.csv", _table(["key", "vid_key", "video_id", "sentence"], rows))
    write_clips(videos, folder)


def clip_counts(world: World) -> dict[str, int]:
    """Clips of ``train`` and ``test`` for a world with that many images."""
    least = {"train": 3, "test": 2}
    return {split: max(least[split], round(share * len(world.images[split]))) for split, share in PER_IMAGE.items()}


def seven(train: list[Video]) -> int:
    """How many of the training clips are in the 7k list."""
    return max(2, round(SEVEN_OF_NINE * len(train)))


def described(videos: list[Video], rng: np.random.Generator) -> dict[str, Any]:
    """Content of ``MSRVTT_data.json``.

    As in the official file, sentences are not grouped by clip, and start and end are times in the film that a clip
    was cut from, so they are not those of the file.
    """
    official = [video for video in videos if video.split == "train"]
    in_seven = seven(official)
    first_validate = in_seven - max(1, round(VALIDATE * in_seven))
    entries, sentences = [], []
    for video in videos:
        split = "train" if video.number < first_validate else "validate" if video.number < in_seven else "test"
        start = round(float(rng.uniform(0, 200)), 2)
        entries.append(
            {
                "category": ANIMATION,
                "url": f"https://example.org/watch?v={video.video_id}",
                "video_id": video.video_id,
                "start time": start,
                "end time": round(start + video.clip.seconds, 2),
                "split": split,
                "id": video.number,
            }
        )
        sentences += [(video.video_id, text) for text in video.sentences]
    order = rng.permutation(len(sentences))
    records = [
        {"caption": sentences[int(k)][1], "video_id": sentences[int(k)][0], "sen_id": number}
        for number, k in enumerate(order)
    ]
    return {"info": INFO, "videos": entries, "sentences": records}


def _table(header: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
