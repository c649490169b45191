"""Decoding chosen frames: decord where it can, PyAV for what decord refuses. Both give the same pixels.

Every call opens the file, decodes and closes it: no reader is kept, so worker processes and threads share nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from vlkit.data.images import MediaError
from vlkit.data.video.containers import open_video, phrase
from vlkit.data.video.frame_table import FrameTable

log = logging.getLogger(__name__)

MAX_DECODED = 50_000
"""Frames that may have to be decoded, key frames onward, to get those asked for."""
MAX_SECONDS = 120.0
"""Time that decoding one clip may take."""
DECORD_DECODED, DECORD_SIDE = 5_000, 128
"""Most frames that decord is given to decode, since it cannot be interrupted; and least side in pixels, since it takes
the padded rows of some narrow frames for a fourth channel (decord2 3.4)."""
BLOCK_BYTES = 64 << 20
"""Full-size frames held at a time while they are shrunk."""


class Refused(Exception):
    """decord does not want this file; PyAV may still."""


def decode(path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None = None) -> list[np.ndarray]:
    """Frames [H, W, 3] uint8 RGB at ascending ``indices`` of ``table``, upright, shrunk to the short side ``size``.

    Raises:
        MediaError: damaged, or decoding would take too long.
    """
    work = frames_to_decode(table, indices)
    if work > MAX_DECODED:
        raise MediaError(path, f"over-long: {work:,} frames must be decoded to get {len(indices)} (few key frames)")
    if suits_decord(table, work):
        try:
            return decode_by_decord(path, table, indices, size)
        except Refused as error:
            log.debug("%s: decord refuses it (%s); PyAV takes over", path, error)
    return decode_by_av(path, table, indices, size)


def suits_decord(table: FrameTable, work: int) -> bool:
    """False where decord is known to differ without saying so: frames a few places off after a jump in open groups
    and in containers without an index, other colours at edges from 10-bit pixels.
    """
    return table.seekable and table.plain and work <= DECORD_DECODED and min(table.width, table.height) >= DECORD_SIDE


def frames_to_decode(table: FrameTable, indices: np.ndarray) -> int:
    """How many frames must be decoded for those at ``indices``: each from the last key frame or wanted one on."""
    begins = _begins(table)
    position, total = -1, 0
    for index in indices.tolist():
        begin = max(int(begins[index]), position + 1)
        total += index - begin + 1
        position = index
    return total


def decode_by_decord(path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None) -> list[np.ndarray]:
    """:func:`decode` by decord alone.

    Raises:
        Refused: decord fails, or sees other frames than the table.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise Refused(str(error)) from error
    decord.logging.set_level(decord.logging.QUIET)
    reader = None
    try:
        # By default decord fills in copies of a neighbour for frames that cannot be decoded; a tolerance above 0
        # that no count stays below makes that an error.
        reader = decord.VideoReader(str(path), num_threads=1, fault_tol=1e-9)
        return _by_reader(reader, table, indices, size)
    except (MemoryError, Refused):
        raise
    except Exception as error:  # decord raises nearly anything, AssertionError among it
        reason = " ".join(str(error).split())[:200]
    finally:
        reader = None  # with its threads; an exception's traceback would keep it
    raise Refused(reason)  # out here, so that the traceback above is gone


def _by_reader(reader: Any, table: FrameTable, indices: np.ndarray, size: int | None) -> list[np.ndarray]:
    shown = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    if len(shown) != len(table) or np.abs(shown - shown[0] - table.times).max() > 2e-3:
        raise Refused("it lists other frames")
    block = max(1, BLOCK_BYTES // (3 * table.width * table.height))
    frames: list[np.ndarray] = []
    for begin in range(0, len(indices), block):
        batch = reader.get_batch(indices[begin : begin + block].tolist()).asnumpy()
        if batch.shape[1:] not in ((table.height, table.width, 3), (table.width, table.height, 3)):
            raise Refused(f"its frames have the shape {batch.shape[1:]}")
        frames += [shrink(frame, size) for frame in batch]
    return frames


def decode_by_av(path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None) -> list[np.ndarray]:
    """:func:`decode` by PyAV alone."""
    limit = time.monotonic() + MAX_SECONDS
    frames, reason = _pass(path, table, indices, size, limit)
    if len(frames) < len(indices) and table.seekable and table.key[1:].any() and indices[-1] < MAX_DECODED:
        # A jump may end too late, or at a frame that leans on earlier ones: without jumps all that there is comes out.
        frames, reason = _pass(path, replace(table, seekable=False), indices, size, limit)
    for index in indices.tolist():
        if index not in frames:
            where = f"at {table.times[index]:.2f} s (frame {index} of {len(table)})"
            raise MediaError(path, f"damaged or truncated {where}: {reason}")
    return [frames[index] for index in indices.tolist()]


def _pass(
    path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None, limit: float
) -> tuple[dict[int, np.ndarray], str]:
    """The frames that one pass over the file finds, and why there are no others."""
    frames: dict[int, np.ndarray] = {}
    with open_video(path) as (container, stream):
        stream.thread_count = 1  # the caller's workers are the parallel part
        try:
            for index, frame in _wanted_frames(container, stream, table, indices.tolist(), limit):
                frames[index] = shrink(_upright(frame, table), size)
        except av.FFmpegError as error:
            return frames, phrase(error)
    return frames, "no such frame comes out"


def _wanted_frames(
    container: InputContainer, stream: VideoStream, table: FrameTable, wanted: list[int], limit: float
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (index, frame) for the wanted frames that are found, jumping where a key frame lies in between."""
    begins = _begins(table)
    number = {stamp: index for index, stamp in enumerate(table.stamps.tolist())}
    position, frames = -1, None
    for index in wanted:
        if frames is None or begins[index] > position + 1:
            if begins[index] > 0:
                # To the key frame itself: the next one may be stored before the wanted frame is shown.
                container.seek(int(table.stamps[begins[index]]), stream=stream, backward=True)
            frames = container.decode(stream)
        while position < index:
            frame = next(frames, None)
            if frame is None:
                return
            if time.monotonic() > limit:
                raise MediaError(container.name, f"decoding takes more than {MAX_SECONDS:g} s")
            position = number.get(frame.pts, position) if table.stamped else position + 1
        if position == index and not frame.is_corrupt:
            yield index, frame


def _begins(table: FrameTable) -> np.ndarray:
    """For each frame the index of the last key frame up to it; 0 where jumps are not safe."""
    if not table.seekable:
        return np.zeros(len(table), np.int64)
    return np.maximum.accumulate(np.where(table.key, np.arange(len(table)), 0))


def _upright(frame: av.VideoFrame, table: FrameTable) -> np.ndarray:
    """[H, W, 3] uint8; PyAV gives the frame as coded and the angle, counter-clockwise, to turn it by."""
    pixels = frame.to_ndarray(format="rgb24", width=table.width, height=table.height)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def shrink(frame: np.ndarray, size: int | None) -> np.ndarray:
    """[H, W, 3] uint8 with the short side ``size``, by Pillow's bicubic filter; smaller ones as they are."""
    height, width = frame.shape[:2]
    if size is None or min(height, width) <= size:
        return frame
    scale = size / min(height, width)
    sides = max(size, round(width * scale)), max(size, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(sides, Image.Resampling.BICUBIC))
