"""Supported image formats, and the messages for unsupported ones."""

from __future__ import annotations

import functools
import importlib.util

from PIL import Image

# Pillow's other plugins are not used: some are rarely tested, and EPS would start an external program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
READS_HEIF = importlib.util.find_spec("pi_heif") is not None
"""Whether the reader of HEIC and HEIF is installed (extra ``heic``)."""
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".avif"}
    | (HEIF_SUFFIXES if READS_HEIF else frozenset())
)
UNREAD_SUFFIXES = (
    frozenset(
        {".heics", ".avifs", ".jxl", ".psd", ".svg", ".ico", ".eps", ".exr", ".hdr", ".tga"}
        | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
    )
    | HEIF_SUFFIXES
) - IMAGE_SUFFIXES
"""File endings of unsupported images; a folder scan reports them with advice."""
CONVERT = "convert it to JPEG or PNG"
INSTALL_HEIF = "pip install 'vlkit[heic]'"
HEADER_BYTES = 256
"""Number of header bytes that :func:`refusal` needs; they include the brand list of an HEIC file."""

_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset({b"mif1", b"msf1", b"mif2", b"miaf", b"1pic"})
_UNREAD = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop (PSD)",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"\0\0\1\0": "ICO",
    b"v/1\x01": "OpenEXR",
    b"FUJIFILM": "camera raw",
    b"IIRO": "camera raw",
    b"IIU\0": "camera raw",
}
# First bytes of the supported formats, to tell a damaged image from a file that is not an image.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")


def refusal(start: bytes) -> str | None:
    """Name the unsupported format of a file in one phrase with advice; None for all other files.

    Args:
        start: the first :data:`HEADER_BYTES` bytes of the file, or all if it has fewer.
    """
    if start[4:8] == b"ftyp":
        return _refused_brands(start)
    if (start[:4] == b"RIFF" and start[8:12] == b"AVI ") or start.startswith(b"\x1aE\xdf\xa3"):
        return "a video, not an image"
    if start[:4] in (b"II*\0", b"MM\0*") and start[8:10] == b"CR":
        return f"camera raw (CR2) is not supported; {CONVERT}"
    text = start.lstrip()
    if text.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text:
        return f"SVG is not supported; {CONVERT}"
    name = next((name for first, name in _UNREAD.items() if start.startswith(first)), None)
    return f"{name} is not supported; {CONVERT}" if name else None


def looks_like_image(start: bytes) -> bool:
    """Whether a file begins like one of :data:`FORMATS`; if it cannot be read, it is damaged."""
    return start.startswith(_SIGNATURES) or start[4:8] == b"ftyp"


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that can be opened here: AVIF, JPEG 2000 and HEIF are optional."""
    Image.init()
    if READS_HEIF:
        import pi_heif  # pyright: ignore[reportMissingImports]

        pi_heif.register_heif_opener()  # it turns images upright itself, and resets their orientation tag
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refused_brands(start: bytes) -> str | None:
    """HEIC, AVIF, MP4 and others share one container format; the brands in its header identify the file."""
    end = min(int.from_bytes(start[:4], "big") or len(start), len(start))
    brands = {start[8:12], *(start[place : place + 4] for place in range(16, end - 3, 4))}
    if brands & _AVIF:
        return None if "AVIF" in readable_formats() else f"AVIF is not supported by this build of Pillow; {CONVERT}"
    if b"crx " in brands:
        return f"camera raw (CR3) is not supported; {CONVERT}"
    if brands & (_HEIC | _HEIF):
        name = "HEIC" if brands & _HEIC else "HEIF"
        return None if "HEIF" in readable_formats() else f"{name} needs {INSTALL_HEIF}; or {CONVERT}"
    return "a video, not an image"
