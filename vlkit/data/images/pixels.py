"""Convert pixels of any format to upright 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

# EXIF orientation -> operation that makes the image upright.
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
# Where Pillow looks for an orientation. They are removed after rotation, so that copies are not rotated again.
_CARRIERS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_DEPTHS = (8, 10, 12, 14, 16)
_STATED_RANGE = ("PPM", "JPEG2000")  # formats that state their largest value: Pillow has rescaled it to 16 bits


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a Pillow image of any mode into upright 8-bit RGB.

    The EXIF orientation is applied and removed, so a second call changes nothing. Transparent pixels are composited
    over white, as viewers show them (their hidden colour is arbitrary). CMYK, palette and greyscale images are
    converted.

    16-bit greyscale keeps the 8 highest bits in use. Scanners and cameras store 10, 12 or 14 bits as 16 without saying
    so: the smallest of the depths 8, 10, 12, 14 and 16 that can hold the largest value is assumed.

    Raises:
        ValueError: 32-bit pixels, whose range the file does not state.
    """
    source_format = image.format  # a transposed image has none
    image = _upright(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and source_format in ("PNG", "PPM")):
        # Pillow would clip these to 255, which leaves nearly white images. Mode "I" of PNG and PGM is 16 bit too.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        depth = 16 if source_format in _STATED_RANGE else _depth(values)
        return Image.fromarray((values >> (depth - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("unsupported 32-bit pixels; convert it to 8 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or the EXIF block is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def low_bytes_tile(image: Image.Image) -> list[Any] | None:
    """Decoder settings that give the 8 low bits of 16-bit colour, which Pillow would reduce to its 8 high bits (set
    them as ``tile`` of the same file, opened again). None for all other images.
    """
    swapped = []
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        mode, order, end = str(arguments[0]).partition(";16")
        # Reading the two bytes of a value in the other order leaves the low one. "N" (native) comes from libtiff.
        if image.mode not in ("RGB", "RGBA") or mode not in ("RGB", "RGBA", "RGBX") or end not in ("L", "B", "N"):
            return None
        changed = (mode + order + ("L" if end == "B" else "B"), *arguments[1:])
        swapped.append((*tile[:3], changed if isinstance(tile[3], tuple) else changed[0]))
    return swapped or None


def joined_depth(high: Image.Image, low: Image.Image) -> Image.Image:
    """Combine the 8 high and 8 low bits of 16-bit colour, reduced to 8 bits as :func:`to_rgb` does for greyscale.

    Args:
        high, low: images of equal size and mode, RGB or RGBA. The alpha channel has its own depth.
    """
    values = np.asarray(high).astype(np.int64) << 8 | np.asarray(low)
    parts = [values[..., :3], values[..., 3:]] if high.mode == "RGBA" else [values]
    joined = Image.fromarray(np.concatenate([part >> (_depth(part) - 8) for part in parts], axis=2).astype(np.uint8))
    joined.info = {key: value for key, value in high.info.items() if key in _CARRIERS}
    return joined


def _depth(values: np.ndarray) -> int:
    largest = int(values.max(initial=0))
    return next(depth for depth in _DEPTHS if largest < 1 << depth)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # Pillow rotates TIFF files while loading, and PNG may store the orientation after the pixels
    orientation = orientation_of(image)
    if orientation == 1:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for carrier in _CARRIERS:
        turned.info.pop(carrier, None)
    return turned
