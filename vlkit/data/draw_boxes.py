"""Draw boxes on images, for the scripts and the web demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlkit.errors import UserError
from vlkit.files import whole_file

COLORS = ("#0f766e", "#b45309", "#7c3aed", "#be123c", "#475569")
"""Box colours, best box first; white text is readable on each."""
SMALLEST = 640
"""Pixels of the longer side; smaller images are enlarged so that lines and text are legible."""
CELL = 360
"""Pixels of an image's side on a sheet."""
PAGE = 160
"""Minimum width in pixels of an image with a caption."""


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    caption: str = "",
    annotated: Sequence[Sequence[float]] = (),
    labels: Sequence[str] = (),
) -> Image.Image:
    """Draw boxes on a copy of the image, enlarged if small; the best box is on top and has the thickest line.

    Args:
        image: RGB.
        boxes: predicted, best first: x1, y1, x2, y2 in pixels of the image.
        caption: text above the image, such as the query.
        annotated: ground-truth boxes, drawn thin and white.
        labels: text label of each box; empty = no labels.
    """
    scale = drawn_scale(image.size)
    canvas = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pen, width = ImageDraw.Draw(canvas), max(2, round(max(canvas.size) / 220))
    placed = [_placed(box, scale) for box in boxes]
    for number, box in reversed(list(enumerate(placed))):
        line = 3 * width if number == 0 else width
        around = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
        pen.rectangle(around, outline="white", width=line + 2)
        pen.rectangle(box, outline=COLORS[number % len(COLORS)], width=line)
    for box in annotated:
        pen.rectangle(_placed(box, scale), outline="white", width=max(1, width // 2))
    font = ImageFont.load_default(size=7 * width)
    for number, (box, label) in reversed(list(enumerate(zip(placed, labels, strict=False)))):
        _sign(pen, canvas.size, box, label, COLORS[number % len(COLORS)], font)
    return _with_caption(canvas, caption) if caption else canvas


def drawn_scale(size: tuple[int, int]) -> float:
    """Pixels of the drawing per pixel of an image of this width and height."""
    return max(1.0, SMALLEST / max(size))


def write_png(image: Image.Image, path: Path) -> None:
    """Write an image atomically.

    Raises:
        UserError: the file's name does not end in .png, or it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--draw {path}: is not a .png file; give a name that ends in .png")
    try:
        with whole_file(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(f"--draw {path}: cannot write ({error.strerror or error}); choose another file") from None


def write_sheet(images: Sequence[Image.Image], path: Path, columns: int = 4) -> None:
    """Write images side by side, each fitted into a square."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * CELL, rows * CELL), "black")
    for number, image in enumerate(images):
        image.thumbnail((CELL, CELL))
        row, column = divmod(number, columns)
        sheet.paste(image, (column * CELL + (CELL - image.width) // 2, row * CELL + (CELL - image.height) // 2))
    write_png(sheet, path)


def _placed(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    """A box in canvas pixels; its corners are put in order if the prediction inverts them."""
    left, top, right, bottom = (side * scale for side in box)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _sign(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    text: str,
    color: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Draw a label above a box, or inside it if there is no room above."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = right - left + 10, bottom - top + 8
    x = max(0, min(box[0], size[0] - wide))
    y = box[1] - high if box[1] >= high else max(0, box[1])
    pen.rectangle([x, y, x + wide, y + high], fill=color)
    pen.text((x + 5 - left, y + 4 - top), text, font=font, fill="white")


def _with_caption(image: Image.Image, text: str) -> Image.Image:
    font: Any = ImageFont.load_default(size=max(14, min(image.width // 28, 40)))
    width = max(image.width, PAGE)
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width - 8 else [*lines, word]
    height = sum(font.getmetrics()) + 2
    page = Image.new("RGB", (width, image.height + height * len(lines) + 4), "black")
    pen = ImageDraw.Draw(page)
    for number, words_of_line in enumerate(lines):
        pen.text((4, 2 + number * height), words_of_line, font=font, fill="white")
    page.paste(image, (0, height * len(lines) + 4))
    return page
