"""A summary of a video within a budget of seconds, from the saliency of its clips, and the summary as a video file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlkit.data.video.clip_frames import shown_frames
from vlkit.data.video.write import write_mp4
from vlkit.errors import UserError
from vlkit.files import whole_file
from vlkit.tasks.moment_retrieval.evaluate import Found

PLAYED_FPS = 12
"""Frames per second of a written summary."""


def summary_of(found: Found, seconds: float) -> list[tuple[float, float]]:
    """The most salient clips whose lengths add up to at most ``seconds``; neighbours are joined.

    Returns:
        (start, end) in seconds, in order of time.

    Raises:
        UserError: the budget is not a positive number, or shorter than one clip.
    """
    line = found.timeline
    if not 0 < seconds < math.inf:
        raise UserError(f"a summary of {seconds} seconds: give a number above 0")
    if seconds >= line.duration:
        return [(0.0, line.duration)]
    count = int(seconds * line.fps + 1e-6)
    if count < 1:
        raise UserError(f"a summary of {seconds:g} seconds: one clip has {1 / line.fps:g} s; give at least as many")
    parts: list[tuple[float, float]] = []
    for clip in sorted(np.argsort(-found.saliency, kind="stable")[:count].tolist()):
        start, end = clip / line.fps, min((clip + 1) / line.fps, line.duration)
        if parts and abs(parts[-1][1] - start) < 1e-9:
            parts[-1] = parts[-1][0], end
        else:
            parts.append((start, end))
    return [part for part in parts if part[1] > part[0]]


def write_summary(video: str | Path, parts: Sequence[tuple[float, float]], path: str | Path) -> None:
    """Write parts of a video one after the other as an MP4 file, without sound.

    Raises:
        vlkit.data.images.MediaError: the video cannot be read.
    """
    with whole_file(path) as temporary:
        write_mp4(temporary, _played(video, parts), PLAYED_FPS)


def _played(video: str | Path, parts: Sequence[tuple[float, float]]) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for start, end in parts:
        for number, frame in shown_frames(video, start, end, PLAYED_FPS):
            height, width = (side - side % 2 for side in frame.shape[:2])  # H.264 needs even sides
            yield first + number, frame[:height, :width]
        first += max(1, math.ceil((end - start) * PLAYED_FPS - 1e-6))
