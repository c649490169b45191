"""The demo world's clips on disk: MP4 files of moving things, H.264 as in most collections."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vlkit.data.video.write import find_encoder, write_mp4
from vlkit.drawn.captions_video import sentences
from vlkit.drawn.clip_samples import sample_clip
from vlkit.drawn.clips import Clip, draw_frame
from vlkit.drawn.world import generator, mapped
from vlkit.files import write_text

log = logging.getLogger(__name__)

CLIP_STREAM, SENTENCE_STREAM = 40, 41
SENTENCES = 20
"""Sentences per clip, as in MSR-VTT."""
FOLDER = "videos"
SETTINGS = {
    "libx264": {"preset": "veryfast", "crf": "18", "g": "12", "threads": "1", "x264-params": "mbtree=0"},
    "mpeg4": {"qmin": "2", "qmax": "4", "g": "12", "threads": "1"},
}
"""Settings of the encoders: nearly lossless at this size, a key frame about every second. With threads or its
macroblock tree, x264 gives other bytes from run to run."""


@dataclass(frozen=True)
class Video:
    """One clip on disk.

    Attributes:
        split: ``train`` or ``test``.
        number: unique over both splits; the file is ``video<number>.mp4``.
        clip: what was drawn.
        sentences: ``SENTENCES`` different ones, plain to detailed.
    """

    split: str
    number: int
    clip: Clip
    sentences: tuple[str, ...]

    @property
    def video_id(self) -> str:
        """``video12``."""
        return f"video{self.number}"

    @property
    def file_name(self) -> str:
        """``videos/video12.mp4``."""
        return f"{FOLDER}/{self.video_id}.mp4"


def sample_clips(seed: int, counts: dict[str, int]) -> dict[str, list[Clip]]:
    """Clips of the splits ``train`` and ``test``; no two in the whole world have the same :meth:`Clip.key`.

    Test clips are drawn first, so they do not depend on the size of the training split.
    """
    seen: set[str] = set()
    clips = {split: [_new_clip(seed, split, index, seen) for index in range(counts[split])] for split in _DRAWN}
    return {split: clips[split] for split in counts}


_DRAWN = ("test", "train")


def _new_clip(seed: int, split: str, index: int, seen: set[str]) -> Clip:
    attempt = 0
    while (clip := sample_clip(generator(seed, split, index, CLIP_STREAM, attempt))).key() in seen:
        attempt += 1
    seen.add(clip.key())
    return clip


def draw_videos(seed: int, counts: dict[str, int], folder: Path, side: int = 96, workers: int = 0) -> list[Video]:
    """Sample clips, write one MP4 each to ``folder/videos`` and describe them; training clips first.

    The clips and sentences depend on ``seed`` alone, the bytes of the files also on the version of the encoder.

    Args:
        counts: clips of ``train`` and of ``test``.
        side: width and height in pixels; odd ones are raised by one, as H.264 stores colour for 2 x 2 pixels.
        workers: processes that draw; 0 = this one alone.
    """
    if find_encoder() != "libx264":
        log.warning("this build of PyAV has no libx264: the demo clips are written as MPEG-4 instead of H.264")
    (folder / FOLDER).mkdir(parents=True)
    clips = sample_clips(seed, counts)
    items = [(split, index, clip) for split in ("train", "test") for index, clip in enumerate(clips[split])]
    numbered = [(number, *item) for number, item in enumerate(items)]
    draw = partial(_draw_video, seed=seed, folder=folder, side=side + side % 2)
    return list(mapped(draw, numbered, workers, "draw clips", chunk=8))


def _draw_video(item: tuple[int, str, int, Clip], seed: int, folder: Path, side: int) -> Video:
    number, split, index, clip = item
    texts = sentences(clip, generator(seed, split, index, SENTENCE_STREAM), SENTENCES)
    video = Video(split, number, clip, tuple(texts))
    encode(clip, folder / video.file_name, side)
    return video


def encode(clip: Clip, path: Path, side: int) -> None:
    """Write a clip as MP4 (H.264, yuv420p) of ``side`` x ``side`` pixels, an even number."""
    frames = ((number, np.asarray(draw_frame(clip, number, side))) for number in range(clip.frames))
    write_mp4(path, frames, clip.fps, SETTINGS)


def write_clips(videos: list[Video], folder: Path) -> None:
    """Write ``clips_<split>.jsonl``: one line per clip, with its graph."""
    for split in ("train", "test"):
        lines = [
            json.dumps({"video_id": v.video_id, "file_name": v.file_name, "clip": v.clip.to_json()})
            for v in videos
            if v.split == split
        ]
        write_text(folder / f"clips_{split}.jsonl", "".join(line + "\n" for line in lines))
