"""Open video files; a :class:`~vlkit.data.images.MediaError` says why a file cannot be used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vlkit.data.images import MediaError

# Allowed demuxers: others would read a text as a video, or follow the URLs in a playlist.
FORMATS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "ogg", "flv", "asf", "gif", "m4v", "h264", "hevc", "ivf",
)  # fmt: skip
IMAGE_CODECS = ("mjpeg", "png", "bmp", "webp", "tiff", "jpeg2000")
"""Codecs of still images. A stream of one of them may also be a video (motion JPEG), if there is no other stream."""

DECODER_ERRORS = (av.FFmpegError, IndexError)
"""Errors that reading and decoding raise for damaged files; the second one if the header lacks a stream."""


def ffmpeg_path(path: str | Path) -> str:
    """The absolute path, as libraries built on FFmpeg need it.

    In a relative path they take the text before a colon as a protocol: ``12:30.mp4`` would be read by protocol "12".
    """
    return os.path.abspath(path)


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and its video stream; nothing is decoded yet.

    Cover art and thumbnails are not taken for the video, wherever they are in the file.

    Raises:
        MediaError: missing, empty, not a video, no video stream, an unsupported codec, or a damaged header.
    """
    start = _read_start(path)
    # Only this one file is read, whatever it refers to.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
    try:
        container = av.open(ffmpeg_path(path), options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        reason = f"damaged or truncated ({phrase(error)})" if _looks_like_video(start) else "not a video"
        raise MediaError(path, reason) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(path, "no video stream" + (" (only sound)" if container.streams.audio else ""))
        stream = min(streams, key=_rank)
        if stream.codec_context is None:
            raise MediaError(path, "unsupported video codec")
        yield container, stream


def _rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
    """Sort key, lower = more likely the video: moving before still, default before others, then file order."""
    still = bool(stream.disposition & (Disposition.still_image | Disposition.timed_thumbnails))
    image = stream.codec_context is not None and stream.codec_context.name in IMAGE_CODECS
    return still, image, not stream.disposition & Disposition.default, stream.index


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
        raise MediaError.unreadable(path, error) from error
    if not start:
        raise MediaError(path, "empty file")
    return start


def _looks_like_video(start: bytes) -> bool:
    """Whether the first bytes are those of MP4, Matroska or AVI."""
    mp4 = start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
    return mp4 or start.startswith(b"\x1aE\xdf\xa3") or (start.startswith(b"RIFF") and start[8:12] == b"AVI ")


def phrase(error: Exception) -> str:
    """A decoder's error message as one phrase."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
