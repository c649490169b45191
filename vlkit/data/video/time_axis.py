"""From the time stamps of a file to seconds. Stamps may repeat, be missing or start again; seconds always ascend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

USUAL, SHORTEST = 0.04, 0.004
"""Seconds of a frame where a file states nothing at all; a stated length below the second figure is none."""


def time_axis(
    stamps: Sequence[int | None], unit: float, step: float = 0.0, last: float = 0.0
) -> tuple[np.ndarray, float]:
    """When each frame is shown, and how long the video is.

    Frames that repeat the stamp of an earlier one are spread evenly up to the next stamp. A jump back by more than a
    second is a new beginning: the time goes on from there. Where stamps are missing or all the same, the frame rate
    is constant.

    Args:
        stamps: of each of N >= 1 frames in the order they are shown; None = missing.
        unit: seconds of 1 in ``stamps``.
        step: seconds from one frame to the next as the file states it; 0 = not stated.
        last: seconds that the last frame is shown; 0 = not stated.

    Returns:
        (float64 [N] seconds after the first frame, strictly ascending; seconds from the first frame to the end).
    """
    if None in stamps or (len(stamps) > 1 and len(set(stamps)) == 1):
        step = _constant_step(stamps, unit, step if step >= SHORTEST else USUAL)
        return np.arange(len(stamps)) * step, len(stamps) * step
    seconds = (np.array(stamps, np.int64) - stamps[0]) * unit
    forward = np.diff(seconds)[np.diff(seconds) > 0]
    usual = float(np.median(forward)) if len(forward) else step if step >= SHORTEST else USUAL
    seconds = np.maximum.accumulate(_joined(seconds, usual))
    duration = float(seconds[-1]) + (last if last >= SHORTEST else usual)
    return _spread(seconds, duration), duration


def _constant_step(stamps: Sequence[int | None], unit: float, step: float) -> float:
    """Seconds of a frame: the stated ones, unless the stamps that are there cover a clearly different time."""
    known = [(index, stamp) for index, stamp in enumerate(stamps) if stamp is not None]
    if len(known) > 1:
        (first, begin), (final, end) = known[0], known[-1]
        measured = (end - begin) * unit / (final - first)
        if measured > 0 and abs(measured - step) > 0.1 * step:
            return measured
    return step


def _joined(seconds: np.ndarray, usual: float) -> np.ndarray:
    """Parts with stamps of their own, one after the other: each begins ``usual`` after the end of the one before."""
    steps = np.diff(seconds)
    steps[steps < -1.0] = usual
    return np.concatenate([[0.0], np.cumsum(steps)]) if (np.diff(seconds) < -1.0).any() else seconds


def _spread(seconds: np.ndarray, end: float) -> np.ndarray:
    """Ascending times in which equal ones are moved apart, evenly up to the next time or ``end``."""
    begins = np.flatnonzero(np.diff(seconds, prepend=-1.0) > 0)
    if len(begins) == len(seconds):
        return seconds
    nexts = np.append(seconds[begins[1:]], end)
    counts = np.diff(begins, append=len(seconds))
    within = np.arange(len(seconds)) - np.repeat(begins, counts)
    return seconds + within * np.repeat((nexts - seconds[begins]) / counts, counts)


def ascends(stamps: Sequence[int | None]) -> bool:
    """Whether all stamps are there and none is below the one before."""
    return None not in stamps and all(a <= b for a, b in itertools.pairwise(stamps))
