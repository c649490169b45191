"""Open image files as complete, upright RGB images; otherwise a :class:`MediaError` gives the reason."""

from vlkit.data.images.formats import IMAGE_SUFFIXES
from vlkit.data.images.opening import (
    MAX_PIXELS,
    ImageInput,
    MediaError,
    as_rgb,
    content_size,
    decode_image,
    image_size,
    open_image,
)
from vlkit.data.images.pixels import to_rgb
from vlkit.data.images.records import (
    identify_file,
    identify_record,
    image_batches,
    open_record,
    read_image,
    record_image_size,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageInput",
    "MediaError",
    "as_rgb",
    "content_size",
    "decode_image",
    "identify_file",
    "identify_record",
    "image_batches",
    "image_size",
    "open_image",
    "open_record",
    "read_image",
    "record_image_size",
    "to_rgb",
]
