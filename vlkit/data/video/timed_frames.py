"""Frames of a video at given times, for videos of any length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlkit.data.images import MediaError
from vlkit.data.video.decode import MissingFrame, decode
from vlkit.data.video.frame_table import FrameTable, decoded_table, frame_table

AT_ONCE = 64
"""Frames that are decoded in one go: a long video is read in blocks."""


def frames_at(path: str | Path, times: Sequence[float], size: int | None = None) -> Iterator[np.ndarray]:
    """Yield the frame on the screen at each time: uint8 [H, W, 3], upright.

    Args:
        path: a video file.
        times: seconds after the first frame, ascending; times after the end give the last frame.
        size: downscale the frames to this many pixels on the short side; smaller ones are unchanged.

    Raises:
        MediaError: the file cannot be used, or a frame that is needed is damaged.
    """
    for start in range(0, len(times), AT_ONCE):
        block = times[start : start + AT_ONCE]
        try:
            yield from _block(path, frame_table(path), block, size)
        except MissingFrame as missing:
            try:
                table = decoded_table(path)
            except MediaError:
                raise missing from None  # it is the damage that the caller meets
            yield from _block(path, table, block, size)


def _block(path: str | Path, table: FrameTable, times: Sequence[float], size: int | None) -> list[np.ndarray]:
    indices, places = np.unique(table.shown_at(np.asarray(times, dtype=np.float64)), return_inverse=True)
    frames = decode(path, table, indices, size)
    return [frames[place] for place in places.tolist()]
