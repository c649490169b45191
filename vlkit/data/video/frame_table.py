"""When each frame of a video is shown, read from the packets alone: nothing is decoded."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vlkit.data.images import MAX_PIXELS, MediaError
from vlkit.data.video.containers import LEAST_DECODED, open_video, phrase

MAX_FRAMES = 1_000_000
"""Frames a video may have: nine hours at 30 frames a second. More is refused as over-long."""
SEEKABLE = ("mov", "matroska")
"""Containers with an index by time stamps. In AVI the stamps differ after a jump, and MPEG streams jump too far."""
CACHED = 8
"""Tables kept: the windows of a long video are read one after the other."""


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The frames of a video in the order they are shown.

    Attributes:
        times: float64 [N], seconds after the first frame, ascending.
        duration: seconds from the first frame to the end of the last one.
        stamps: int64 [N], time stamps in the file's own unit, ascending.
        key: bool [N], True where decoding can begin.
        stamped: whether each frame has a time stamp of its own. If not (some AVI files), ``stamps`` are those of
            decoding, and a frame is found by counting from the start.
        seekable: whether decoding may begin at a key frame in the middle and still know where it is.
        plain: 8-bit pixels, and no frame is stored behind a key frame and shown before it (closed groups).
        width, height: pixels as coded, before any rotation.
    """

    times: np.ndarray
    duration: float
    stamps: np.ndarray
    key: np.ndarray
    stamped: bool
    seekable: bool
    plain: bool
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.times)

    def shown_at(self, seconds: np.ndarray | float) -> np.ndarray:
        """Index of the frame that is on the screen at each time (the first or last one outside the video)."""
        # Times are sums of rounded stamps: a frame that begins a microsecond later counts as begun.
        return np.maximum(np.searchsorted(self.times, np.asarray(seconds) + 1e-6, side="right") - 1, 0)


def frame_table(path: str | Path) -> FrameTable:
    """The table of a video file; kept for the next call as long as the file does not change.

    Raises:
        MediaError: as :func:`~vlkit.data.video.containers.open_video`; also truncated, no frames, or over-long.
    """
    try:
        state = os.stat(path)
        key = (str(path), state.st_size, state.st_mtime_ns)
    except OSError:
        key = (str(path), -1, -1)  # opening it says why
    with _lock:  # the cache alone would let several threads read the same long file
        return _cached(*key)


_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


@functools.lru_cache(CACHED)
def _cached(path: str, size: int, changed: int) -> FrameTable:
    return _read(path)


def _read(path: str) -> FrameTable:
    with open_video(path) as (container, stream):
        if not stream.width * stream.height or stream.format is None or stream.time_base is None:
            raise MediaError(path, "damaged or truncated (the header does not state the frames' format)")
        if stream.width * stream.height > MAX_PIXELS:
            raise MediaError(path, f"too large: frames of {stream.width} x {stream.height} pixels")
        rows, last, stop = _packets(path, container, stream)
        declared, unit = stream.frames, float(stream.time_base)
        whole = container.duration / av.time_base if container.duration and "matroska" in container.format.name else 0
        width, height = stream.width, stream.height
        eight_bit = all(component.bits == 8 for component in stream.format.components)
        indexed = any(name in container.format.name for name in SEEKABLE)
    if not rows:
        raise MediaError(path, "damaged or truncated (holds no frame)")
    if len(rows) < LEAST_DECODED * declared:
        raise MediaError(path, f"truncated ({len(rows)} of {declared} frames)")
    if stop < LEAST_DECODED * whole - 1:  # Matroska states no number of frames
        raise MediaError(path, f"truncated ({stop:.1f} of {whole:.1f} s)")
    shown = [row[0] for row in rows]
    stamped = None not in shown and len(set(shown)) == len(shown)
    stamps = np.array(shown if stamped else _counted(rows), np.int64)
    keys = np.array([row[2] for row in rows], bool)
    earliest_after = np.minimum.accumulate(stamps[::-1])[::-1]
    plain = eight_bit and bool((earliest_after == stamps)[keys].all())
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    times = (stamps - stamps[0]) * unit
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    duration = float(times[-1]) + (last * unit or usual or 0.04)
    return FrameTable(times, duration, stamps, keys[order], stamped, stamped and indexed, plain, width, height)


Row = tuple[int | None, int | None, bool]


def _packets(path: str, container: InputContainer, stream: VideoStream) -> tuple[list[Row], int, float]:
    """(shown, decoded, key) of each frame; the length of the last one (0: not stated); the end of all streams [s]."""
    rows: list[Row] = []
    last, latest, stop = 0, None, 0.0
    try:
        for packet in container.demux():
            if not packet.size:
                continue
            when = packet.pts if packet.pts is not None else packet.dts
            if when is not None:
                stop = max(stop, float((when + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise MediaError(path, f"damaged or truncated (packet of frame {len(rows)})")
            if len(rows) == MAX_FRAMES:
                raise MediaError(path, f"over-long: more than {MAX_FRAMES:,} frames; cut it into parts")
            if when is not None and (latest is None or when >= latest):
                latest, last = when, packet.duration or 0
            rows.append((packet.pts, packet.dts, packet.is_keyframe))
    except av.FFmpegError as error:
        raise MediaError(path, f"damaged or truncated after {len(rows)} frames ({phrase(error)})") from error
    return rows, last, stop


def _counted(rows: list[Row]) -> list[int]:
    """Ascending stamps for a file without usable ones: those of decoding if they ascend, else running numbers."""
    decoded = [row[1] for row in rows]
    if None not in decoded and all(a < b for a, b in itertools.pairwise(decoded)):
        return decoded
    return list(range(len(rows)))
