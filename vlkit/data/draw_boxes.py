"""Boxes drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlkit.errors import UserError
from vlkit.files import whole_file

COLORS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#bf5af2")
SMALLEST = 320
"""Pixels of the longer side; smaller pictures are enlarged, so that lines and words can be seen."""
CELL = 360
"""Pixels of a picture's side on a sheet."""


def draw_boxes(
    image: Image.Image, boxes: Sequence[Sequence[float]], text: str, annotated: Sequence[Sequence[float]] = ()
) -> Image.Image:
    """A copy of the picture with its boxes (x1, y1, x2, y2 in pixels), the best one first, and the text above it.

    Args:
        image: RGB picture.
        boxes: predicted, in colours.
        text: what was asked for.
        annotated: right boxes, thin and white.
    """
    scale = max(1.0, SMALLEST / max(image.size))
    picture = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pen, line = ImageDraw.Draw(picture), max(2, round(max(picture.size) / 200))
    for number in reversed(range(len(boxes))):
        _frame(pen, boxes[number], scale, COLORS[number % len(COLORS)], line)
    for box in annotated:
        _frame(pen, box, scale, "white", 1)
    return _with_caption(picture, text)


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture whole.

    Raises:
        UserError: the file's name does not end in .png, or it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--draw {path}: is no .png; name it so")
    try:
        with whole_file(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(f"--draw {path}: cannot write ({error.strerror or error}); choose another file") from None


def write_sheet(pictures: Sequence[Image.Image], path: Path, columns: int = 4) -> None:
    """Write pictures side by side, each fitted into a square."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (min(columns, len(pictures)) * CELL, rows * CELL), "black")
    for number, picture in enumerate(pictures):
        picture.thumbnail((CELL, CELL))
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * CELL + (CELL - picture.width) // 2, row * CELL + (CELL - picture.height) // 2))
    write_png(sheet, path)


def _frame(pen: ImageDraw.ImageDraw, box: Sequence[float], scale: float, color: str, line: int) -> None:
    left, top, right, bottom = (side * scale for side in box)
    pen.rectangle([min(left, right), min(top, bottom), max(left, right), max(top, bottom)], outline=color, width=line)


def _with_caption(picture: Image.Image, text: str) -> Image.Image:
    font = ImageFont.load_default(size=max(14, picture.width // 28))
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= picture.width - 8 else [*lines, word]
    height = sum(font.getmetrics()) + 2
    page = Image.new("RGB", (picture.width, picture.height + height * len(lines) + 4), "black")
    pen = ImageDraw.Draw(page)
    for number, words_of_line in enumerate(lines):
        pen.text((4, 2 + number * height), words_of_line, font=font, fill="white")
    page.paste(picture, (0, height * len(lines) + 4))
    return page
