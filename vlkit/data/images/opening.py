"""Decoding one image file, or its header alone."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlkit.cli.show import visible
from vlkit.data.images.formats import HEADER_BYTES, looks_like_image, readable_formats, refusal
from vlkit.data.images.pixels import joined_depth, low_bytes_tile, orientation_of, to_rgb
from vlkit.errors import UserError

ImageInput = str | Path | Image.Image
"""An image as users give it: a file, or an image in memory."""
# Maximum number of pixels, checked before decoding: 256 MiB as RGB. Larger sizes are errors or decompression bombs.
MAX_PIXELS = 89_478_485
_CUT_SHORT = ("truncated", "not large enough", "reached eof", "unexpected end")
_header_lock = threading.Lock()
_load_locks = tuple(threading.Lock() for _ in range(64))  # for an image in memory, by its id


class MediaError(UserError):
    """An image or video that cannot be used.

    Attributes:
        path: the file.
        reason: one phrase, such as ``missing``, ``empty file``, ``truncated`` or ``not an image``.
    """

    def __init__(self, path: str | Path, reason: str = "") -> None:
        # ``reason`` has a default because data loader workers rebuild an exception from its joined message.
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    @classmethod
    def unreadable(cls, path: str | Path, error: OSError) -> MediaError:
        """The system refuses to read the file: permissions, a broken disk."""
        return cls(path, f"cannot be read ({error.strerror or error})")

    def __str__(self) -> str:
        path = visible(self.path)
        return f"{path}: {self.reason}" if self.reason else path


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """Decode an image file completely to upright 8-bit RGB, with the orientation tag removed.

    An animation gives its first frame; :func:`vlkit.data.images.to_rgb` describes how other pixels become RGB.

    Args:
        max_pixels: refuse images whose header states more; checked before decoding.
        min_side: allow JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this many
            pixels. This is faster for training on small crops, but pixels differ slightly and coordinates are scaled.

    Raises:
        MediaError: missing, empty, truncated, damaged, too large, not an image, or in an unsupported format.
    """
    with _opened(path, max_pixels) as (file, image):
        return _decode(path, file, _draft(image, min_side))


def decode_image(
    content: bytes, name: str, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None
) -> Image.Image:
    """As :func:`open_image`, for the content of an image file; ``name`` stands for its path in messages.

    Raises:
        MediaError: as :func:`open_image`.
    """
    with _parsed(name, io.BytesIO(content), max_pixels) as (file, image):
        return _decode(name, file, _draft(image, min_side))


def _draft(image: ImageFile.ImageFile, min_side: int | None) -> ImageFile.ImageFile:
    """Choose the scale at which a JPEG is decoded; other formats are unchanged."""
    if min_side is not None:
        image.draft(None, (min_side, min_side))
    return image


def as_rgb(image: ImageInput, min_side: int | None = None) -> Image.Image:
    """An upright RGB image: the file is opened (``min_side`` as for :func:`open_image`), an image in memory converted.

    Several threads may pass the same image.

    Raises:
        MediaError: as :func:`open_image`, also for an image in memory that was opened lazily or has odd pixels.
        UserError: neither a path nor a Pillow image.
    """
    if isinstance(image, str | Path):
        return open_image(image, min_side=min_side)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"an image is a {type(image).__name__}; give a path or a Pillow image (Image.fromarray(array), "
            "Image.open(io.BytesIO(content)))"
        )
    name = getattr(image, "filename", "") or "an image in memory"
    if not all(image.size):
        raise MediaError(name, f"has no pixels ({image.size[0]} x {image.size[1]})")
    try:
        # Pillow decodes a file that was opened lazily on its first use, and two threads would do so at once.
        with _load_locks[id(image) % len(_load_locks)]:
            image.load()
        return to_rgb(image)
    except (MemoryError, MediaError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise MediaError(name, _reason(error)) from error


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels of the image from :func:`open_image`; decodes no pixels if the header suffices.

    Raises:
        MediaError: as for :func:`open_image`, except for damage after the header.
    """
    with _opened(path, max_pixels) as (file, image):
        return _size(path, file, image)


def content_size(content: bytes, name: str) -> tuple[int, int]:
    """As :func:`image_size`, for the content of an image file; ``name`` stands for its path in messages.

    Raises:
        MediaError: as :func:`image_size`.
    """
    with _parsed(name, io.BytesIO(content), MAX_PIXELS) as (file, image):
        return _size(name, file, image)


def _size(path: str | Path, file: BinaryIO, image: ImageFile.ImageFile) -> tuple[int, int]:
    if image.format == "TIFF":  # which of its two sizes Pillow reports before loading depends on the version
        return _decode(path, file, image).size
    width, height = image.size
    return (height, width) if orientation_of(image) >= 5 else (width, height)


@contextlib.contextmanager
def _opened(path: str | Path, max_pixels: int) -> Iterator[tuple[BinaryIO, ImageFile.ImageFile]]:
    """Open the file and parse its header; file system errors become a MediaError."""
    try:
        with open(path, "rb") as file, _parsed(path, file, max_pixels) as found:
            yield found
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(path, "missing") from None
    except IsADirectoryError:
        raise MediaError(path, "a folder, not a file") from None
    except PermissionError:
        raise MediaError(path, "no permission to read it") from None
    except OSError as error:
        raise MediaError.unreadable(path, error) from error


@contextlib.contextmanager
def _parsed(path: str | Path, file: BinaryIO, max_pixels: int) -> Iterator[tuple[BinaryIO, ImageFile.ImageFile]]:
    """Parse the header of an open file."""
    # Some libraries enable this for the whole process; a half-grey image must not become a sample.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    start = file.read(HEADER_BYTES)
    if not start:
        raise MediaError(path, "empty file")
    reason = refusal(start)
    if reason:
        raise MediaError(path, reason)
    image = _read_header(path, file, start)
    width, height = image.size
    if width * height > max_pixels:
        raise MediaError(path, f"too large: {width} x {height} pixels exceeds {max_pixels} pixels")
    yield file, image


def _read_header(path: str | Path, file: BinaryIO, start: bytes) -> ImageFile.ImageFile:
    """Let Pillow parse the header; no pixel is decoded."""
    try:
        # Pillow's own limit names no path, warns first and refuses only twice the size; ours is checked right after.
        # It is global, so it is lifted under a lock, only while the header is parsed.
        with _header_lock:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(file, formats=readable_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except MemoryError:
        raise
    except UnidentifiedImageError:
        reason = "damaged or truncated (header)" if looks_like_image(start) else "not an image"
        raise MediaError(path, reason) from None
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise MediaError(path, _reason(error)) from error


def _decode(path: str | Path, file: BinaryIO, image: ImageFile.ImageFile) -> Image.Image:
    low_bytes = low_bytes_tile(image)
    try:
        image.load()
        # Highest value of 16-bit colour below 1/4 of its range: fewer bits are in use than the file has.
        if low_bytes and np.asarray(image)[..., :3].max(initial=0) < 64:
            twin = _read_header(path, file, b"")
            twin.tile = low_bytes
            twin.load()
            return to_rgb(joined_depth(image, twin))
        return to_rgb(image)
    except (MemoryError, MediaError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise MediaError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    """A decoder's error message as one phrase."""
    phrase = " ".join(str(error).split())[:120] or type(error).__name__
    if any(word in phrase.lower() for word in _CUT_SHORT):
        return "truncated"
    return phrase if phrase.startswith("unsupported") else f"damaged or truncated ({phrase})"
