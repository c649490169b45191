"""Opening video files, or a :class:`~vlkit.data.images.MediaError` that says why they are no use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and its first moving picture stream; nothing is decoded yet.

    Raises:
        MediaError: missing, empty, not a video, no video stream, an unsupported codec, or a damaged header.
    """
    start = _read_start(path)
    # Only this one file is read, whatever it refers to.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
    try:
        container = av.open(str(path), options=options, metadata_errors="replace")
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
    """A decoder's complaint as one phrase."""
    return " ".join(str(error.strerror or error).split())[:120]
