"""Frames of a video file as its packets list them. Only the first frame is decoded."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vlkit.data.images import MediaError
from vlkit.data.video.containers import DECODER_ERRORS, phrase
from vlkit.data.video.orientation import AS_CODED, Orientation, orientation_of
from vlkit.data.video.time_axis import ascends

MAX_FRAMES = 1_000_000
"""Maximum number of frames of a video: nine hours at 30 frames per second. More is refused as over-long."""
FIRST = 100
"""Number of packets searched for the first frame."""


@dataclass
class Packets:
    """One entry per frame, in storage order, which is decoding order.

    Attributes:
        shown, decoded: time stamps (pts, dts) in units of the stream; None = missing.
        key: whether decoding can begin there.
        lengths: how long the frames are shown, in units of the stream; 0 = not stated.
        stop: end of the last packet of any stream, in seconds.
        first: the time stamp that the decoder gives the first frame; None = none, or it is damaged.
        orientation: of the first frame.
    """

    shown: list[int | None] = field(default_factory=list)
    decoded: list[int | None] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    stop: float = 0.0
    first: int | None = None
    orientation: Orientation = AS_CODED

    def __len__(self) -> int:
        return len(self.shown)

    @property
    def step(self) -> int:
        """The typical length of a frame; 0 = not stated."""
        return int(np.median(self.lengths)) if self.lengths else 0

    @property
    def last(self) -> int:
        """The length of the frame that is shown last; 0 = not stated."""
        known = [(stamp, index) for index, stamp in enumerate(self.shown) if stamp is not None]
        return self.lengths[max(known)[1]] if known else 0

    def order_is_told(self, stream: VideoStream) -> bool:
        """Whether the time stamps state the order and times at which frames are shown.

        False if some are missing, if all are the same, if time goes back, and for codecs with reordered frames in AVI,
        which does not store when frames are shown.
        """
        reordered = bool(stream.codec_context.has_b_frames)
        if None in self.shown or (len(self) > 1 and len(set(self.shown)) == 1):
            return False
        if stream.container.format.name == "avi" and reordered:
            return False
        forward = [stamp for stamp in self.decoded if stamp is not None] if reordered else self.shown
        return ascends(forward)

    def without_leading(self) -> Packets:
        """Without frames shown before the first one that can be decoded (a recording that begins in mid-stream)."""
        if self.first is None:
            return self
        kept = [index for index, stamp in enumerate(self.shown) if stamp is not None and stamp >= self.first]
        if not kept:
            return self
        columns: Any = (self.shown, self.decoded, self.key, self.lengths)
        shown, decoded, key, lengths = ([values[index] for index in kept] for values in columns)
        return Packets(shown, decoded, key, lengths, self.stop, self.first, self.orientation)


def read_packets(path: str | Path, container: InputContainer, stream: VideoStream) -> Packets:
    """Read a whole file without decoding it.

    Raises:
        MediaError: damaged, truncated or over-long.
    """
    found, decoder, corrupt = Packets(), _FirstFrame(stream), False
    try:
        for packet in container.demux():
            if not packet.size:
                continue
            when = packet.pts if packet.pts is not None else packet.dts
            if when is not None:
                found.stop = max(found.stop, float((when + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            decoder.take(packet)
            if packet.is_discard:  # hidden by an edit list
                continue
            corrupt = packet.is_corrupt
            if len(found) == MAX_FRAMES:
                raise MediaError(path, f"over-long: more than {MAX_FRAMES:,} frames; cut it into parts")
            found.shown.append(packet.pts)
            found.decoded.append(packet.dts)
            found.key.append(packet.is_keyframe)
            found.lengths.append(packet.duration or 0)
    except DECODER_ERRORS as error:
        raise MediaError(path, f"damaged or truncated after {len(found)} frames ({phrase(error)})") from error
    if corrupt:  # the last one; damage before the end is left to the decoder, as it may be a frame of many
        raise MediaError(path, f"damaged or truncated (packet of frame {len(found) - 1})")
    decoder.take(None)
    found.first, found.orientation = decoder.stamp, decoder.orientation
    return found


class _FirstFrame:
    """Decodes packets until a frame is complete. Damage is left to later decoding."""

    def __init__(self, stream: VideoStream) -> None:
        stream.thread_count = 1  # with several threads, a frame arrives later
        self.decoder, self.left = stream.codec_context, FIRST
        self.stamp: int | None = None
        self.orientation = AS_CODED

    def take(self, packet: Packet | None) -> None:
        """Decode a packet (None at the end of the file), unless a frame is already complete."""
        if not self.left:
            return
        self.left -= 1
        try:
            frames = self.decoder.decode(packet)
        except DECODER_ERRORS:
            return
        if frames:
            self.left = 0
            self.stamp = None if frames[0].is_corrupt else frames[0].pts
            self.orientation = orientation_of(frames[0])
            del frames
            gc.collect(0)  # PyAV's frames and their side data hold each other
