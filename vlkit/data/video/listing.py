"""The frames of a video file as its container lists them, and as its decoder gives them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vlkit.data.images import MAX_PIXELS, MediaError
from vlkit.data.video.containers import DECODER_ERRORS, open_video, phrase
from vlkit.data.video.orientation import AS_CODED
from vlkit.data.video.packets import Packets, read_packets
from vlkit.data.video.time_axis import SHORTEST
from vlkit.data.video.truncation import is_whole

LEAST_DECODED = 0.9
"""Minimum share of the frames that must exist. With fewer, a video is damaged or truncated."""
SEEKABLE = ("mov", "matroska")
"""Containers with an index by time stamps. In AVI the stamps differ after a seek, and MPEG streams seek too far."""
MAX_DECODED, MAX_SECONDS = 50_000, 120.0
"""Maximum number of frames decoded for one clip, and maximum seconds that this may take."""


@dataclass(frozen=True)
class Listing:
    """Content of header and packets.

    Attributes:
        packets: one entry per frame.
        told: whether the packets state the order and times at which frames are shown.
        unit: seconds per unit of the time stamps.
        step: seconds from one frame to the next; 0 = not stated.
        width, height: pixels as coded.
        seekable: whether decoding can begin at a key frame in the middle.
        plain: as in :class:`~vlkit.data.video.frame_table.FrameTable`.
    """

    packets: Packets
    told: bool
    unit: float
    step: float
    width: int
    height: int
    seekable: bool
    plain: bool


@dataclass
class DecodedFrames:
    """What one pass of the decoder over a file gave: the time stamp of each undamaged frame (None = missing)."""

    stamps: list[int | None] = field(default_factory=list)
    damaged: int = 0
    interlaced: bool = False


def read_listing(path: str | Path) -> Listing:
    """Read header and packets.

    Raises:
        MediaError: as :func:`~vlkit.data.video.containers.open_video`; also truncated, no frames, or over-long.
    """
    with open_video(path) as (container, stream):
        if not stream.width * stream.height or stream.format is None or stream.time_base is None:
            raise MediaError(path, "damaged or truncated (the header does not state the frames' format)")
        if stream.width * stream.height > MAX_PIXELS:
            raise MediaError(path, f"too large: frames of {stream.width} x {stream.height} pixels")
        packets = read_packets(path, container, stream)
        if not len(packets):
            raise MediaError(path, "damaged or truncated (holds no frame)")
        _check_complete(path, packets, container, stream)
        told = packets.order_is_told(stream)
        packets = packets.without_leading() if told else packets
        unit = float(stream.time_base)
        return Listing(
            packets=packets,
            told=told,
            unit=unit,
            step=_step(packets, container, stream),
            width=stream.width,
            height=stream.height,
            seekable=any(name in container.format.name for name in SEEKABLE),
            plain=len(container.streams.video) == 1 and _plain(packets, stream),
        )


def _step(packets: Packets, container: InputContainer, stream: VideoStream) -> float:
    """Seconds from one frame to the next, from the first source that states it; 0 = none does."""
    rate = stream.average_rate or stream.guessed_rate
    stated = (
        packets.step * float(stream.time_base or 0),
        1 / float(rate) if rate else 0.0,
        (container.duration or 0) / av.time_base / len(packets),
    )
    return next((step for step in stated if step >= SHORTEST), 0.0)


def _check_complete(path: str | Path, packets: Packets, container: InputContainer, stream: VideoStream) -> None:
    """Refuse a truncated file. A header may be wrong, so the file must also end before its container does."""
    if len(packets) < LEAST_DECODED * stream.frames and not is_whole(path):
        raise MediaError(path, f"truncated ({len(packets)} of {stream.frames} frames)")
    if container.duration and "matroska" in container.format.name:  # it states no number of frames
        whole = container.duration / av.time_base
        if packets.stop < LEAST_DECODED * whole - 1 and not is_whole(path):
            raise MediaError(path, f"truncated ({packets.stop:.1f} of {whole:.1f} s)")


def _plain(packets: Packets, stream: VideoStream) -> bool:
    if packets.orientation != AS_CODED or any(component.bits != 8 for component in stream.format.components):
        return False
    if None in packets.shown or len(set(packets.shown)) < len(packets):
        return False
    stamps = np.array(packets.shown, np.int64)
    earliest_after = np.minimum.accumulate(stamps[::-1])[::-1]
    return bool((earliest_after == stamps)[packets.key].all())


def decode_all(path: str | Path, listing: Listing, limited: bool) -> DecodedFrames:
    """Decode a file completely.

    Args:
        limited: refuse what takes more than :data:`MAX_DECODED` frames or :data:`MAX_SECONDS`.

    Raises:
        MediaError: decoding fails, fewer undamaged frames than :data:`LEAST_DECODED` of those listed, or the limit.
    """
    limit = time.monotonic() + MAX_SECONDS
    found, listed = DecodedFrames(), len(listing.packets)
    if limited and listed > MAX_DECODED:
        raise MediaError(path, f"over-long: all of its {listed:,} frames must be decoded to find some")
    with open_video(path) as (container, stream):
        stream.thread_count = 1  # the caller's workers run in parallel; and each pass gives the same frames
        try:
            for frame in container.decode(stream):
                found.interlaced |= frame.interlaced_frame
                if frame.is_corrupt:
                    found.damaged += 1
                else:
                    found.stamps.append(frame.pts)
                if limited and time.monotonic() > limit:
                    raise MediaError(path, f"decoding takes more than {MAX_SECONDS:g} s")
        except DECODER_ERRORS as error:
            after = f" after {len(found.stamps)} frames" if found.stamps else ""
            raise MediaError(path, f"damaged or truncated{after} ({phrase(error)})") from error
    count = len(found.stamps)
    if not count:
        raise MediaError(path, "damaged or truncated (no frame can be decoded)")
    if found.interlaced and count + found.damaged <= 0.6 * listed:
        listed = -(-listed // 2)  # each packet is a field, and two fields make a frame
    if count < LEAST_DECODED * listed:
        raise MediaError(path, f"{'damaged' if found.damaged else 'truncated'} ({count} of {listed} frames)")
    return found
