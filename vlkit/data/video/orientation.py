"""How decoded frames must be rotated and mirrored to be upright: the eight orientations of a display matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np


class Orientation(NamedTuple):
    """Operations on the pixels of a coded frame, in this order."""

    transpose: bool
    """Exchange rows and columns."""
    left_right: bool
    """Then mirror left to right."""
    upside_down: bool
    """Then mirror top to bottom."""


AS_CODED = Orientation(False, False, False)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The orientation that the container or the codec gives a frame; angles in between are rounded.

    PyAV's ``frame.rotation`` is an angle only, and is wrong for mirrored frames.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    matrix = None if data is None else np.frombuffer(bytes(data), np.int32).astype(np.int64).tolist()
    return AS_CODED if matrix is None else orientation_from(matrix)


def orientation_from(matrix: Sequence[int]) -> Orientation:
    """The orientation of a display matrix of nine numbers, row after row."""
    # The pixel (x, y) is shown at (a x + c y, b x + d y), y downward.
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def upright(pixels: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Rotate and mirror [H, W, 3] pixels; with ``transpose`` the result is [W, H, 3]."""
    if orientation.transpose:
        pixels = pixels.swapaxes(0, 1)
    if orientation.left_right:
        pixels = pixels[:, ::-1]
    if orientation.upside_down:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
