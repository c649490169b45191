"""Frames of a clip: they are chosen by their times first, and only the chosen ones are decoded.

Training, evaluation and indexing call ``read_frames``; ``windows`` and ``duration_of`` are for long videos,
``shown_frames`` for playing a part.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from vlkit.data.images import MediaError
from vlkit.data.video.containers import DECODER_ERRORS, open_video
from vlkit.data.video.decode import MissingFrame, decode, upright_pixels, wanted_frames
from vlkit.data.video.frame_table import FrameTable, decoded_table, frame_table

if TYPE_CHECKING:
    import torch

Sampling = Literal["uniform", "segment"]


@dataclass(frozen=True)
class Clip:
    """A video file, or the part of it between two times in seconds (None = from the beginning, to the end)."""

    path: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """Frames of one clip. T frames were requested, N <= T were available.

    Attributes:
        frames: uint8 [N, H, W, 3], RGB, upright.
        times: float64 [N], seconds after the first frame of the file, strictly ascending.
        count: T.
    """

    frames: np.ndarray
    times: np.ndarray
    count: int

    @property
    def mask(self) -> np.ndarray:
        """bool [T], True = real frame, False = padding."""
        return np.arange(self.count) < len(self.frames)

    def padded(self) -> np.ndarray:
        """uint8 [T, H, W, 3]: the frames, then zeros; use it with :attr:`mask`."""
        missing = self.count - len(self.frames)
        return np.pad(self.frames, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else self.frames

    def images(self) -> list[Image.Image]:
        """The N real frames as RGB images."""
        return [Image.fromarray(frame) for frame in self.frames]


def read_frames(
    path: str | Path,
    count: int,
    start: float | None = None,
    end: float | None = None,
    sampling: Sampling = "uniform",
    generator: torch.Generator | None = None,
    size: int | None = None,
) -> ClipFrames:
    """Decode ``count`` frames of a video, or of the part between two times; all of them if there are fewer.

    Args:
        count: frames wanted, T.
        start, end: seconds after the first frame; None = from the beginning, to the end. An end after the video's end
            is clipped to it.
        sampling: ``uniform``: evenly spaced in time, including the first and the last frame. ``segment``: the part
            is cut into T equal segments and one frame of each is taken (Temporal Segment Networks,
            arXiv:1608.00859), at the centre, or at a random time if there is a ``generator``.
        generator: source of the random times of ``segment``.
        size: downscale the frames to this many pixels on the short side; smaller ones are unchanged.

    Raises:
        MediaError: the file cannot be used, or more than a tenth of its frames are damaged and a chosen one is among
            them. Black frames are never substituted.
        ValueError: wrong arguments.
    """
    if count < 1 or (size is not None and size < 1):
        raise ValueError(f"count is {count} and size {size}; both must be 1 or more")
    if sampling not in ("uniform", "segment"):
        raise ValueError(f'sampling is "{sampling}"; known are uniform, segment')

    def read(table: FrameTable) -> ClipFrames:
        first, stop = _part(path, table, start, end)
        indices = choose_frames(table, count, first, stop, sampling, generator)
        return ClipFrames(np.stack(decode(path, table, indices, size)), table.times[indices], count)

    try:
        return read(frame_table(path))
    except MissingFrame as missing:
        try:
            table = decoded_table(path)
        except MediaError:
            raise missing from None  # it is the damage that the caller meets
        return read(table)


def shown_frames(path: str | Path, start: float, end: float, rate: float) -> Iterator[tuple[int, np.ndarray]]:
    """Play a part of a video: yield (k, frame) for the frames on the screen at the times ``start + k / rate``.

    Frames are uint8 [H, W, 3], upright, at full size, one at a time. A frame that is shown for several k is yielded
    once, with the first k.

    Raises:
        MediaError: the file cannot be used.
    """
    done = -1
    for table_of in (frame_table, decoded_table):  # the second where the first turns out to be wrong
        table = table_of(path)
        numbers = np.arange(max(1, math.ceil((min(end, table.duration) - start) * rate - 1e-6)))
        indices, firsts = np.unique(table.shown_at(start + numbers / rate), return_index=True)
        left = firsts > done
        number_of = dict(zip(indices[left].tolist(), firsts[left].tolist(), strict=True))
        with contextlib.suppress(*DECODER_ERRORS), open_video(path) as (container, stream):
            for index, frame in wanted_frames(container, stream, table, indices[left]):
                if frame is not None:
                    done = number_of[index]
                    yield done, upright_pixels(frame, table)
        if done == firsts[-1]:
            return
    raise MediaError(path, f"damaged or truncated at {start + (done + 1) / rate:.2f} s")


def duration_of(path: str | Path) -> float:
    """Seconds from the first frame of a video to the end of its last one.

    Raises:
        MediaError: the file cannot be used.
    """
    return frame_table(path).duration


def windows(duration: float, length: float, stride: float | None = None) -> list[tuple[float, float]]:
    """Cut a video into windows of ``length`` seconds, one every ``stride`` (default: ``length``).

    The last window ends with the video; it is moved back rather than shortened, so it may overlap more. A video
    that is shorter than one window is one window.

    Returns:
        (start, end) of each in seconds; together they cover 0 to ``duration``, if ``stride`` is at most ``length``.

    Raises:
        ValueError: a value is not a finite number above 0.
    """
    stride = length if stride is None else stride
    if not all(math.isfinite(value) and value > 0 for value in (duration, length, stride)):
        raise ValueError(f"duration {duration}, length {length} and stride {stride} must be above 0 and finite")
    if duration <= length:
        return [(0.0, duration)]
    count = math.ceil((duration - length) / stride - 1e-9)  # windows that end before the video does
    whole = [(k * stride, k * stride + length) for k in range(count)]
    return [*whole, (duration - length, duration)]


def choose_frames(
    table: FrameTable,
    count: int,
    start: float,
    end: float,
    sampling: Sampling = "uniform",
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Indices of min(``count``, available frames) different frames shown between two times, ascending: int64 [N].

    Frames are chosen by time, so uneven time stamps do not affect their spacing.
    """
    first = int(table.shown_at(start))
    stop = max(first + 1, int(np.searchsorted(table.times, end - 1e-6, side="left")))
    if stop - first <= count:
        return np.arange(first, stop)
    if sampling == "uniform" and count > 1:
        chosen = table.nearest(np.linspace(table.times[first], table.times[stop - 1], count))
    else:
        begin = max(start, float(table.times[first]))
        place = np.full(count, 0.5) if sampling == "uniform" or generator is None else _random(count, generator)
        chosen = table.shown_at(begin + (np.arange(count) + place) * (end - begin) / count)
    chosen = np.clip(chosen, first, stop - 1)
    # Where frames are sparse, two times may select the same frame: move on to the neighbours.
    steps = np.arange(count)
    chosen = np.maximum.accumulate(chosen - steps) + steps
    return np.minimum(chosen, stop - count + steps)


def _random(count: int, generator: torch.Generator) -> np.ndarray:
    import torch  # slow to import, and not needed by processes that only decode

    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()


def _part(path: str | Path, table: FrameTable, start: float | None, end: float | None) -> tuple[float, float]:
    start, end = 0.0 if start is None else float(start), math.inf if end is None else float(end)
    if not 0 <= start < end:
        raise ValueError(f"start {start} and end {end}: give 0 <= start < end in seconds")
    if start >= table.duration:
        raise MediaError(path, f"start {start:g} s is after its end ({table.duration:.2f} s)")
    return start, min(end, table.duration)
