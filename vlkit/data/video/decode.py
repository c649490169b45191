"""Decode chosen frames with decord, or with PyAV where decord fails. Both give the same pixels.

Every call opens, decodes and closes the file, so worker processes and threads share nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from vlkit.data.images import MediaError
from vlkit.data.video.containers import DECODER_ERRORS, ffmpeg_path, open_video, phrase
from vlkit.data.video.frame_table import FrameTable
from vlkit.data.video.listing import MAX_DECODED, MAX_SECONDS
from vlkit.data.video.orientation import upright

log = logging.getLogger(__name__)

DECORD_DECODED, DECORD_SIDE = 5_000, 128
"""Maximum number of frames that decord decodes, since it cannot be interrupted; and minimum side in pixels, since it
takes the padded rows of some narrow frames for a fourth channel (decord2 3.4).
"""
BLOCK_BYTES = 64 << 20
"""Full-size frames in memory at a time while they are downscaled."""


class Refused(Exception):
    """decord cannot decode this file; PyAV may be able to."""


class MissingFrame(MediaError):
    """The decoder does not return a frame that the table lists, or the frame is damaged."""


def decode(path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None = None) -> list[np.ndarray]:
    """Frames [H, W, 3] uint8 RGB at ascending ``indices`` of ``table``, upright, downscaled to the short side ``size``.

    Raises:
        MissingFrame: a frame is damaged, or the table does not match the decodable frames.
        MediaError: decoding would take too long.
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
    """Whether decord is reliable. It is known to fail silently with wrong frames after a seek in open GOPs and in
    containers without an index, with wrong colours at edges in 10-bit video, and with orientations.
    """
    return table.seekable and table.plain and work <= DECORD_DECODED and min(table.width, table.height) >= DECORD_SIDE


def frames_to_decode(table: FrameTable, indices: np.ndarray) -> int:
    """Number of frames to decode for those at ``indices``, each counted from the last key frame or requested frame."""
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
        Refused: decord fails, or finds other frames than the table.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise Refused(str(error)) from error
    decord.logging.set_level(decord.logging.QUIET)
    reader = None
    try:
        # By default decord replaces undecodable frames with copies of a neighbour; a tolerance above 0 that every count
        # exceeds makes that an error.
        reader = decord.VideoReader(ffmpeg_path(path), num_threads=1, fault_tol=cast(int, 1e-9))
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
        if batch.shape[1:] != (table.height, table.width, 3):
            raise Refused(f"its frames have the shape {batch.shape[1:]}")
        frames += [shrink(frame, size) for frame in batch]
    return frames


def decode_by_av(path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None) -> list[np.ndarray]:
    """:func:`decode` by PyAV alone."""
    deadline = time.monotonic() + MAX_SECONDS
    frames, reason = _pass(path, table, indices, size, deadline)
    if len(frames) < len(indices) and table.seekable and table.key[1:].any() and indices[-1] < MAX_DECODED:
        # A seek may end too late, or at a frame that depends on earlier ones; without seeking every frame is decoded.
        frames, reason = _pass(path, replace(table, seekable=False), indices, size, deadline)
    for index in indices.tolist():
        if index not in frames:
            where = f"at {table.times[index]:.2f} s (frame {index} of {len(table)})"
            raise MissingFrame(path, f"damaged or truncated {where}: {reason}")
    return [frames[index] for index in indices.tolist()]


def _pass(
    path: str | Path, table: FrameTable, indices: np.ndarray, size: int | None, deadline: float
) -> tuple[dict[int, np.ndarray], str]:
    """The frames that one pass over the file finds, and the reason if some are missing."""
    frames: dict[int, np.ndarray] = {}
    with open_video(path) as (container, stream):
        try:
            for index, frame in wanted_frames(container, stream, table, indices):
                if time.monotonic() > deadline:
                    raise MediaError(path, f"decoding takes more than {MAX_SECONDS:g} s")
                if frame is not None:
                    frames[index] = shrink(upright_pixels(frame, table), size)
        except DECODER_ERRORS as error:
            return frames, phrase(error)
    return frames, "the decoder returns no such frame"


def wanted_frames(
    container: InputContainer, stream: VideoStream, table: FrameTable, indices: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Yield (index, frame) for each decoded frame; None in place of frames that are not requested or damaged.

    The decoder seeks if a key frame lies between two of the ascending ``indices``. Decoding stops if frames arrive in
    another order than their time stamps.

    Raises:
        av.FFmpegError, IndexError: decoding fails.
    """
    stream.thread_count = 1  # the caller's workers run in parallel
    begins, first_of = _begins(table), _first_of(table)
    position, frames, latest = -1, None, -math.inf
    for index in indices.tolist():
        if frames is None or begins[index] > position + 1:
            if begins[index] > 0:
                # To the key frame itself: the next one may be stored before the wanted frame is shown.
                container.seek(int(table.stamps[begins[index]]), stream=stream, backward=True)
            frames, latest = container.decode(stream), -math.inf
        while position < index:
            frame = next(frames, None)
            if frame is None:
                return
            if table.found_by == "stamp":
                if frame.pts is None or frame.pts < latest:
                    return
                latest = frame.pts
                position = _index_of(frame.pts, table, first_of, position)
            elif not (frame.is_corrupt and table.found_by == "undamaged"):
                position += 1
            yield position, frame if position == index and not frame.is_corrupt else None


def _first_of(table: FrameTable) -> dict[int, int]:
    """Time stamp -> index of the first frame that has it."""
    stamps, indices = np.unique(table.stamps, return_index=True)
    return dict(zip(stamps.tolist(), indices.tolist(), strict=True))


def _index_of(stamp: int, table: FrameTable, first_of: dict[int, int], position: int) -> int:
    """Index of the frame decoded after the one at ``position``; the same position if it is not listed."""
    following = position + 1
    if following < len(table) and table.stamps[following] == stamp:  # also among frames of one stamp
        return following
    return first_of.get(stamp, position)


def _begins(table: FrameTable) -> np.ndarray:
    """For each frame the index of the last key frame up to it; 0 where seeking is not safe."""
    if not table.seekable:
        return np.zeros(len(table), np.int64)
    # After a seek to a time stamp of several frames, it is unknown which of them is decoded.
    repeats = np.diff(table.stamps) == 0
    alone = ~(np.append(repeats, False) | np.append(False, repeats))
    return np.maximum.accumulate(np.where(table.key & alone, np.arange(len(table)), 0))


def upright_pixels(frame: av.VideoFrame, table: FrameTable) -> np.ndarray:
    """[H, W, 3] uint8 of a decoded frame, upright."""
    pixels = frame.to_ndarray(format="rgb24", width=table.width, height=table.height)
    return upright(pixels, table.orientation)


def shrink(frame: np.ndarray, size: int | None) -> np.ndarray:
    """[H, W, 3] uint8 with the short side ``size``, by Pillow's bicubic filter; smaller ones unchanged."""
    height, width = frame.shape[:2]
    if size is None or min(height, width) <= size:
        return frame
    scale = size / min(height, width)
    sides = max(size, round(width * scale)), max(size, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(sides, Image.Resampling.BICUBIC))
