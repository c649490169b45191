"""What is in a video file, or a :class:`~vlkit.data.images.MediaError` that says why it is no use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av

from vlkit.data.images import MediaError
from vlkit.data.video.containers import LEAST_DECODED, open_video, phrase
from vlkit.data.video.frame_table import frame_table


@dataclass(frozen=True)
class VideoInfo:
    """What :func:`probe` found: size in pixels as coded, frames decoded, mean frames a second (None: not stated)."""

    width: int
    height: int
    frames: int
    fps: float | None
    codec: str


def probe(path: str | Path) -> VideoInfo:
    """Decode a video completely and say what it holds.

    The number of frames is counted: some containers state none, and damage shows only in decoding.

    Raises:
        MediaError: missing, empty, not a video, no video stream, an unsupported codec, damaged, truncated or
            over-long.
    """
    listed = len(frame_table(path))
    with open_video(path) as (container, stream):
        count = 0
        try:
            for _ in container.decode(stream):
                count += 1
        except av.FFmpegError as error:
            after = f" after {count} frames" if count else ""
            raise MediaError(path, f"damaged or truncated{after} ({phrase(error)})") from error
        if count == 0:
            raise MediaError(path, "damaged or truncated (no frame can be decoded)")
        if count < LEAST_DECODED * listed:
            raise MediaError(path, f"truncated ({count} of {listed} frames)")
        fps = None if stream.average_rate is None else float(stream.average_rate)
        return VideoInfo(stream.width, stream.height, count, fps, stream.codec_context.name)
