"""Write MP4 files."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vlkit.data.video.containers import ffmpeg_path

ENCODERS = ("libx264", "mpeg4")
"""Video encoders in order of preference: H.264 if this build of PyAV has it, else MPEG-4."""


def find_encoder() -> str:
    """The first of :data:`ENCODERS` that this build of PyAV has."""
    return next(name for name in ENCODERS if name in av.codecs_available)


def write_mp4(
    path: str | Path,
    frames: Iterable[tuple[int, np.ndarray]],
    rate: int | Fraction,
    options: dict[str, dict[str, str]] | None = None,
) -> int:
    """Encode frames as an MP4 file (yuv420p, index at the start) by :func:`find_encoder`.

    Args:
        path: the file; its name may have any ending.
        frames: (number, [H, W, 3] uint8 RGB): the frame is shown ``number / rate`` seconds after the start. Numbers
            ascend; all frames have the size of the first, with even sides.
        rate: frames per second.
        options: settings of each encoder, by its name.

    Returns:
        The number of frames written; with 0 the file is not a video.
    """
    encoder, written, stream = find_encoder(), 0, None
    with av.open(ffmpeg_path(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        for number, pixels in frames:
            if stream is None:
                stream = container.add_stream(encoder, rate=rate, options=(options or {}).get(encoder))
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base, written = number, 1 / Fraction(rate), written + 1
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    return written
