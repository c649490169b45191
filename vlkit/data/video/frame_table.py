"""Which frames a video has, and when each is shown.

:func:`frame_table` reads the packets, which takes milliseconds. If their time stamps are insufficient or turn out to be
wrong, :func:`decoded_table` lists the frames that the decoder gives.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vlkit.data.video.listing import Listing, decode_all, read_listing
from vlkit.data.video.orientation import AS_CODED, Orientation
from vlkit.data.video.time_axis import ascends, time_axis

DECODED_FOR_TABLE = 5_000
"""Maximum number of frames decoded to list a file whose packets are insufficient."""
CACHED, CACHED_DECODED = 8, 256
"""Numbers of cached tables: the windows of a long video are read in sequence; decoded tables are small and costly."""


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The frames of a video in the order they are shown.

    Attributes:
        times: float64 [N], seconds after the first frame, strictly ascending.
        duration: seconds from the first frame to the end of the last one.
        stamps: int64 [N], time stamps in the file's own unit, ascending; they may repeat.
        key: bool [N], True where decoding can begin.
        found_by: how a frame is recognised among those that the decoder gives: by its time stamp, by counting all
            frames from the start, or by counting the undamaged ones from the start.
        seekable: whether decoding can begin at a key frame in the middle with a known position.
        plain: 8-bit pixels of the only video stream, neither rotated nor mirrored; each frame has its own time stamp,
            and no frame stored after a key frame is shown before it (closed GOPs).
        width, height: pixels as coded, before any rotation.
        orientation: how frames are rotated and mirrored to be upright.
    """

    times: np.ndarray
    duration: float
    stamps: np.ndarray
    key: np.ndarray
    found_by: Literal["stamp", "count", "undamaged"]
    seekable: bool
    plain: bool
    width: int
    height: int
    orientation: Orientation = AS_CODED

    def __len__(self) -> int:
        return len(self.times)

    def shown_at(self, seconds: np.ndarray | float) -> np.ndarray:
        """Index of the frame that is on the screen at each time (the first or last one outside the video)."""
        # Times are sums of rounded stamps: a frame that begins a microsecond later counts as begun.
        return np.maximum(np.searchsorted(self.times, np.asarray(seconds) + 1e-6, side="right") - 1, 0)

    def nearest(self, seconds: np.ndarray | float) -> np.ndarray:
        """Index of the frame that begins closest to each time; the earlier one of two equally close frames."""
        after = np.searchsorted(self.times, np.asarray(seconds), side="left").clip(0, len(self.times) - 1)
        before = np.maximum(after - 1, 0)
        # Times are sums of rounded stamps: a microsecond does not make the later frame closer.
        closer = self.times[after] - seconds < seconds - self.times[before] - 1e-6
        return np.where(closer, after, before)


def frame_table(path: str | Path) -> FrameTable:
    """The table of a video file; cached until the file changes.

    Raises:
        MediaError: as :func:`~vlkit.data.video.containers.open_video`; also truncated, no frames, or over-long.
    """
    return _kept(_from_packets, path)


def decoded_table(path: str | Path) -> FrameTable:
    """The table of a video file by decoding all of it; cached like :func:`frame_table`.

    Damaged frames, and packets that give no frame, are left out.

    Raises:
        MediaError: as :func:`frame_table`; also if too many frames are damaged, or decoding would take too long.
    """
    return _kept(_from_decoder, path)


_locks: list[threading.RLock] = []


def _new_locks() -> None:
    _locks[:] = [threading.RLock() for _ in range(64)]


_new_locks()
os.register_at_fork(after_in_child=_new_locks)


def _kept(read: Callable[..., FrameTable], path: str | Path) -> FrameTable:
    try:
        state = os.stat(path)
        key = (str(path), os.path.abspath(path), state.st_size, state.st_mtime_ns)
    except OSError:
        key = (str(path), "", -1, -1)  # opening it raises the reason
    with _locks[hash(key) % len(_locks)]:  # the cache alone would let several threads read the same long file
        return read(*key)


@functools.lru_cache(CACHED)
def _from_packets(path: str, _absolute: str, _size: int, _changed: int) -> FrameTable:
    listing = read_listing(path)
    packets = listing.packets
    if listing.told:
        stamps = np.array(packets.shown, np.int64)
        order = np.argsort(stamps, kind="stable")
        table = _table(listing, stamps[order].tolist(), np.array(packets.key)[order], "stamp")
        return table
    if len(packets) <= DECODED_FOR_TABLE:
        return decoded_table(path)
    # Too long to be decoded for this alone. One frame per packet is nearly always right.
    stamps = packets.decoded if None not in packets.decoded else packets.shown
    return _table(listing, stamps, np.arange(len(stamps)) == 0, "count")


@functools.lru_cache(CACHED_DECODED)
def _from_decoder(path: str, _absolute: str, _size: int, _changed: int) -> FrameTable:
    listing = read_listing(path)
    found = decode_all(path, listing, limited=True)
    stamps: list[int | None] = found.stamps
    if not ascends(stamps) and len(stamps) == len(listing.packets) and ascends(listing.packets.decoded):
        stamps = listing.packets.decoded  # AVI: frames are shown at the times at which they are decoded
    return _table(listing, stamps, np.arange(len(stamps)) == 0, "undamaged")


def _table(
    listing: Listing, stamps: list[int | None], key: np.ndarray, found_by: Literal["stamp", "count", "undamaged"]
) -> FrameTable:
    unit, told = listing.unit, found_by == "stamp"
    times, duration = time_axis(stamps, unit, listing.step, listing.packets.last * unit)
    return FrameTable(
        times=times,
        duration=duration,
        stamps=np.array(stamps if told else range(len(stamps)), np.int64),
        key=key,
        found_by=found_by,
        seekable=told and listing.seekable,
        plain=told and listing.plain,
        width=listing.width,
        height=listing.height,
        orientation=listing.packets.orientation,
    )
