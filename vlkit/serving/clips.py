"""Search for moments in videos: windows of each file, and cutting one out for playback."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from vlkit.cli.show import visible
from vlkit.data.images import MediaError
from vlkit.data.scan import find_media
from vlkit.data.video.clip_frames import Clip, read_frames, shown_frames
from vlkit.data.video.frame_table import frame_table
from vlkit.data.video.write import write_mp4
from vlkit.files import whole_file
from vlkit.index.files import Item
from vlkit.index.media import VideoWindows, Window
from vlkit.serving.library import Library, Medium

log = logging.getLogger(__name__)

WINDOW, STRIDE = 8.0, 4.0
"""Length of a moment, and distance between the starts of two, in seconds."""
SIDE = 480
"""Longer side of the played video, in pixels."""


@dataclass(frozen=True)
class FoundClip:
    """A search result: similarity, the path in the folder as it can be shown, the file, seconds from start to end."""

    score: float
    name: str
    path: Path
    start: float
    end: float


def videos_in(folder: Path) -> Medium:
    """The moments of the video files below ``folder``, as a library's medium."""
    cut = VideoWindows(folder, WINDOW, STRIDE)

    def find() -> tuple[list[Item], list[MediaError]]:
        items, bad = [], []
        found = find_media(folder, "videos", "--videos")
        if found.note():
            log.warning("%s: %s", folder, found.note())
        for path in found.paths:
            try:
                items += cut.items_of(path)
            except MediaError as error:
                bad.append(error)
        return items, bad

    return Medium(
        folder,
        find=find,
        read=lambda pipeline, item: pipeline.embedder.reader(Clip(*cut.part(item))),
        embed=lambda pipeline, frames: pipeline.embed_frames(frames),
        digest=cut.digest,
    )


def search_clips(library: Library, model: str, queries: np.ndarray, k: int) -> list[list[FoundClip]]:
    """The k nearest moments of each query (float32 [Q, E]), best first; errors as :meth:`Library.search`."""
    return [
        [
            FoundClip(hit.score, visible(where.video), library.folder / where.video, where.start, where.end)
            for hit in hits
            for where in [Window.of(hit.item)]
        ]
        for hits in library.search(model, queries, k)
    ]


def still_of(clip: FoundClip) -> Image.Image:
    """The frame in the middle of a moment.

    Raises:
        MediaError: the file has gone or was damaged meanwhile.
    """
    return _fitted(read_frames(clip.path, 1, clip.start, clip.end).frames[0])


def cut_clip(clip: FoundClip, output: Path) -> None:
    """Write a moment as a small MP4 that browsers play, without sound.

    Raises:
        MediaError: the file has gone or was damaged meanwhile.
    """
    times = frame_table(clip.path).times
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    rate = Fraction(min(30.0, max(1.0, 1 / step))).limit_denominator(1001)
    shown = shown_frames(clip.path, clip.start, clip.end, float(rate))
    frames = ((number, np.asarray(_fitted(pixels))) for number, pixels in shown)
    with whole_file(output) as part:
        write_mp4(part, frames, rate, {"libx264": {"preset": "veryfast"}})


def _fitted(pixels: np.ndarray) -> Image.Image:
    """The image with even sides of at most :data:`SIDE` pixels."""
    image = Image.fromarray(pixels)
    scale = min(1.0, SIDE / max(image.size))
    width, height = (max(2, round(side * scale / 2) * 2) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
