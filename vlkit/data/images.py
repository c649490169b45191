"""Opening picture files: always RGB, upright and complete, or a :class:`MediaError` that says why not."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlkit.errors import UserError

# Pixels a picture may have before it is decoded: 256 MiB as RGB. Larger headers are mistakes or decompression bombs.
MAX_PIXELS = 89_478_485

# Every other plugin of Pillow is left out: some are rarely tested, and EPS would start an external program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".avif"}
)

# First bytes of the formats, to tell a damaged picture from a file that is none. AVIF: "ftyp" after four bytes.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
_CUT_SHORT = ("truncated", "not large enough", "reached eof", "unexpected end")

# EXIF orientation -> what to do to see the picture as it was taken.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_header_lock = threading.Lock()


class MediaError(UserError):
    """A picture or video that cannot be used.

    Attributes:
        path: the file.
        reason: one phrase, such as ``missing``, ``empty file``, ``truncated`` or ``not an image``.
    """

    def __init__(self, path: str | Path, reason: str = "") -> None:
        # ``reason`` has a default because data loader workers rebuild an exception from its joined message.
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """Decode a picture file completely and give it as upright 8-bit RGB.

    Of an animation the first frame is taken; how other pixel types become RGB is told in :func:`to_rgb`.

    Args:
        max_pixels: refuse pictures whose header states more; checked before a pixel is decoded.
        min_side: allow JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this many
            pixels. Quicker, for training on small crops; the pixels differ slightly and coordinates scale.

    Raises:
        MediaError: missing, empty, truncated, damaged, too large, not an image or not readable.
    """
    # Some libraries switch this on for the whole process; half a grey picture must not pass for a sample.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            if not start:
                raise MediaError(path, "empty file")
            image = _read_header(path, file, start)
            width, height = image.size
            if width * height > max_pixels:
                raise MediaError(path, f"too large: {width} x {height} pixels exceeds {max_pixels} pixels")
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            return _decode(path, image)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(path, "missing") from None
    except IsADirectoryError:
        raise MediaError(path, "a folder, not a file") from None
    except PermissionError:
        raise MediaError(path, "no permission to read it") from None
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror or error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a Pillow image of any mode into upright 8-bit RGB.

    Transparent pixels are laid over white, as a viewer shows them (what colour lies beneath is arbitrary). 16-bit
    greys keep their 8 high bits. The EXIF orientation is applied. CMYK, palettes and greys are converted.

    Raises:
        ValueError: 32-bit pixels, whose range the file does not state.
    """
    source_format = image.format  # a transposed image has none
    image = _upright(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and source_format in ("PNG", "PPM")):
        # Pillow would clip these to 255, which leaves nearly white pictures. Mode "I" of PNG and PGM is 16 bit too.
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("unsupported 32-bit pixels; convert it to 8 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _read_header(path: str | Path, file: BinaryIO, start: bytes) -> ImageFile.ImageFile:
    """Let Pillow parse the header; no pixel is decoded."""
    try:
        # Pillow's own limit knows no path, warns first and refuses only at the double; ours comes right after.
        # It is a global, so it is lifted under a lock, for the header alone.
        with _header_lock:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(file, formats=_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except MemoryError:
        raise
    except UnidentifiedImageError:
        known = start.startswith(_SIGNATURES) or start[4:8] == b"ftyp"
        raise MediaError(path, "damaged or truncated (header)" if known else "not an image") from None
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise MediaError(path, _reason(error)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """The wanted formats that this build of Pillow can open (AVIF and JPEG 2000 are optional)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(path: str | Path, image: ImageFile.ImageFile) -> Image.Image:
    try:
        image.load()
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise MediaError(path, _reason(error)) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _reason(error: Exception) -> str:
    """A decoder's complaint as one phrase."""
    phrase = " ".join(str(error).split())[:120] or type(error).__name__
    if any(word in phrase.lower() for word in _CUT_SHORT):
        return "truncated"
    return phrase if phrase.startswith("unsupported") else f"damaged or truncated ({phrase})"
