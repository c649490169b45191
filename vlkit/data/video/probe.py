"""Describe a video file; a :class:`~vlkit.data.images.MediaError` says why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.data.video.containers import open_video
from vlkit.data.video.listing import decode_all, read_listing


@dataclass(frozen=True)
class VideoInfo:
    """What :func:`probe` found: pixels as coded, undamaged frames, mean frames per second (None: not stated)."""

    width: int
    height: int
    frames: int
    fps: float | None
    codec: str


def probe(path: str | Path) -> VideoInfo:
    """Decode a video completely and say what it holds.

    The number of frames is counted: some containers state none, and damage shows only in decoding. A file that passes
    can be read by :func:`~vlkit.data.video.clip_frames.read_frames`, which tolerates the same damage.

    Raises:
        MediaError: missing, empty, not a video, no video stream, an unsupported codec, damaged, truncated or
            over-long.
    """
    frames = len(decode_all(path, read_listing(path), limited=False).stamps)
    with open_video(path) as (_, stream):
        fps = None if stream.average_rate is None else float(stream.average_rate)
        return VideoInfo(stream.width, stream.height, frames, fps, stream.codec_context.name)
