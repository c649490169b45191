"""From the time stamps of a file to seconds. Stamps may repeat, be missing or start again; seconds always ascend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

USUAL, SHORTEST = 0.04, 0.004
"""Seconds of a frame if a file states nothing at all; and the minimum: a shorter stated length is ignored."""


def time_axis(
    stamps: Sequence[int | None], unit: float, step: float = 0.0, last: float = 0.0
) -> tuple[np.ndarray, float]:
    """When each frame is shown, and how long the video is.

    Frames that repeat the stamp of an earlier one are spread evenly up to the next stamp. After a jump back by more
    than a second, the time continues from there. Where stamps are missing or all the same, the frame rate is constant.

    Args:
        stamps: of each of N >= 1 frames in the order they are shown; None = missing.
        unit: seconds per unit of ``stamps``.
        step: seconds from one frame to the next as the file states it; 0 = not stated.
        last: seconds that the last frame is shown; 0 = not stated.

    Returns:
        (float64 [N] seconds after the first frame, strictly ascending; seconds from the first frame to the end).
    """
    if None in stamps or (len(stamps) > 1 and len(set(stamps)) == 1):
        step = _constant_step(stamps, unit, _stated(step))
        return np.arange(len(stamps)) * step, len(stamps) * step
    ticks = np.array(stamps, np.int64)
    seconds = (ticks - ticks[0]) * unit
    seconds = np.maximum.accumulate(_joined(seconds))
    begins = np.flatnonzero(np.diff(seconds, prepend=-1.0) > 0)
    counts = np.diff(begins, append=len(seconds))
    usual = float(np.median(np.diff(seconds[begins]) / counts[:-1])) if len(begins) > 1 else _stated(step)
    length = last if last >= SHORTEST else usual
    duration = float(seconds[-1]) + (length if counts[-1] == 1 else max(length, counts[-1] * usual))
    # Frames that repeat a time are spread evenly up to the next time.
    steps = np.diff(seconds[begins], append=duration) / counts
    within = np.arange(len(seconds)) - np.repeat(begins, counts)
    return seconds + within * np.repeat(steps, counts), duration


def _stated(step: float) -> float:
    return step if step >= SHORTEST else USUAL


def _constant_step(stamps: Sequence[int | None], unit: float, step: float) -> float:
    """Seconds of a frame: the stated ones, unless the existing stamps span a clearly different time."""
    known = [(index, stamp) for index, stamp in enumerate(stamps) if stamp is not None]
    if len(known) > 1:
        (first, begin), (final, end) = known[0], known[-1]
        measured = (end - begin) * unit / (final - first)
        if measured > 0 and abs(measured - step) > 0.1 * step:
            return measured
    return step


def _joined(seconds: np.ndarray) -> np.ndarray:
    """Join parts with their own stamps, with a typical step in between."""
    steps = np.diff(seconds)
    restarts = steps < -1.0
    if not restarts.any():
        return seconds
    steps[restarts] = np.median(steps[steps > 0]) if (steps > 0).any() else USUAL
    return np.concatenate([[0.0], np.cumsum(steps)])


def ascends(stamps: Sequence[int | None]) -> bool:
    """Whether no stamp is missing and none is below the one before."""
    there = [stamp for stamp in stamps if stamp is not None]
    return len(there) == len(stamps) and all(a <= b for a, b in itertools.pairwise(there))
