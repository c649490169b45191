"""Opening video files: what is in them, or a :class:`~vlkit.data.images.MediaError` that says why they are no use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vlkit.data.images import MediaError

# Demuxers that are allowed: others would take a text for a film, or follow the addresses in a play list.
FORMATS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "ogg", "flv", "asf", "gif", "m4v", "h264", "hevc", "ivf",
)  # fmt: skip
LEAST_DECODED = 0.9
"""Share of the stated frames that must be there; edit lists may hide a few."""


@dataclass(frozen=True)
class VideoInfo:
    """What :func:`probe` found: size in pixels as coded, frames decoded, mean frames a second (None: not stated)."""

    width: int
    height: int
    frames: int
    fps: float | None
    codec: str


def probe(path: str | Path) -> VideoInfo:
    """Decode a video completely and say what it holds.

    The number of frames is counted: some containers state none, and damage shows only in decoding.

    Raises:
        MediaError: missing, empty, not a video, no video stream, an unsupported codec, damaged or truncated.
    """
    with open_video(path) as (container, stream):
        count = 0
        try:
            for _ in container.decode(stream):
                count += 1
        except av.FFmpegError as error:
            after = f" after {count} frames" if count else ""
            raise MediaError(path, f"damaged or truncated{after} ({phrase(error)})") from error
        if count == 0:
            raise MediaError(path, "damaged or truncated (no frame can be decoded)")
        if count < LEAST_DECODED * stream.frames:
            raise MediaError(path, f"truncated ({count} of {stream.frames} frames)")
        fps = None if stream.average_rate is None else float(stream.average_rate)
        return VideoInfo(stream.width, stream.height, count, fps, stream.codec_context.name)


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and its first moving picture stream; nothing is decoded yet.

    Raises:
        MediaError: as :func:`probe`, where the header shows it.
    """
    start = _read_start(path)
    # Only this one file is read, whatever it refers to.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
    try:
        container = av.open(str(path), options=options)
    except av.FFmpegError as error:
        reason = f"damaged or truncated ({phrase(error)})" if _looks_like_video(start) else "not a video"
        raise MediaError(path, reason) from error
    with container:
        # A cover picture counts as a video stream, too.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(path, "no video stream" + (" (only sound)" if container.streams.audio else ""))
        if streams[0].codec_context is None:
            raise MediaError(path, "unsupported video codec")
        yield container, streams[0]


def _read_start(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(path, "missing") from None
    except IsADirectoryError:
        raise MediaError(path, "a folder, not a file") from None
    except PermissionError:
        raise MediaError(path, "no permission to read it") from None
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror or error})") from error
    if not start:
        raise MediaError(path, "empty file")
    return start


def _looks_like_video(start: bytes) -> bool:
    """Whether the first bytes are those of MP4, Matroska or AVI."""
    mp4 = start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
    return mp4 or start.startswith(b"\x1aE\xdf\xa3") or (start.startswith(b"RIFF") and start[8:12] == b"AVI ")


def phrase(error: av.FFmpegError) -> str:
    return " ".join(str(error.strerror or error).split())[:120]
