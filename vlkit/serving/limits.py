"""Limits on the texts, numbers and images in requests; each violation gives a one-sentence error."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlkit.data.images import MediaError, open_image
from vlkit.errors import UserError

UPLOAD_BYTES = 20 * 2**20
"""Largest file that may be uploaded."""
ARCHIVE_BYTES = 300 * 2**20
"""Largest file where archives of images are accepted; the images in it have the limits of other uploads."""
UPLOAD_PIXELS = 40_000_000
"""Maximum number of pixels of an uploaded image: as from a good camera, 120 MB decoded."""
TEXT_CHARACTERS = 500
"""Longest query, question or phrase; CLIP reads about 77 tokens of it."""


def check_text(text: str | None, what: str) -> str:
    """``text`` without blanks around it.

    Args:
        what: what the text is, for the message: "query", "question".

    Raises:
        UserError: empty, or longer than :data:`TEXT_CHARACTERS`.
    """
    text = (text or "").strip()
    if not text:
        raise UserError(f"The {what} is empty; write a few words.")
    if len(text) > TEXT_CHARACTERS:
        raise UserError(f"The {what} has {len(text):,} characters; at most {TEXT_CHARACTERS} are read, shorten it.")
    return text


def check_count(count: float | None, what: str, most: int) -> int:
    """``count`` as a whole number from 1 to ``most``.

    Raises:
        UserError: it is not such a number.
    """
    if not isinstance(count, int | float) or count != count or not 1 <= count <= most:
        raise UserError(f"The {what} must be a number from 1 to {most}.")
    return int(count)


def open_upload(path: str | Path | None, name: str = "") -> Image.Image:
    """The uploaded image as RGB; its content determines the format, not its name.

    Args:
        path: the file, or None if nothing was uploaded.
        name: the user's name for the file.

    Raises:
        UserError: there is no file, it is too large, has too many pixels, is damaged, or is not an image.
    """
    if path is None:
        raise UserError("There is no image yet; upload one or click an example.")
    name = name or Path(path).name
    try:
        size = Path(path).stat().st_size
    except OSError:
        raise UserError(f"{name}: the upload is incomplete; upload it again.") from None
    if size > UPLOAD_BYTES:
        raise UserError(f"{name}: has {size / 2**20:.0f} MiB; at most {UPLOAD_BYTES // 2**20} MiB are accepted.")
    try:
        return open_image(path, max_pixels=UPLOAD_PIXELS)
    except MediaError as error:
        raise UserError(f"{name}: cannot be used as an image ({error.reason}).") from None
