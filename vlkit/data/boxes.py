"""Boxes of records: their geometry, and the size of the image that they were drawn on.

A box is absolute ``x1, y1, x2, y2`` pixels, of the image that was annotated. A record states its size as ``width`` and
``height``; without them it is that of the file. Where the file is a resized copy, boxes are scaled with it. Every
reader of boxes goes through :func:`in_file_pixels`.
"""

from __future__ import annotations

import math
from typing import Any

from vlkit.errors import UserError

Record = dict[str, Any]
BOX_SLACK = 1.0
"""Pixels that a box may lie outside its image: annotated ones end up to a rounding step there."""
SIZE_SLACK = 1.0
"""Pixels that each side of a resized copy may differ from the exact scale: sides are whole numbers."""


def stated_size(record: Record) -> tuple[float, float] | None:
    """Width and height in pixels of the image that a record's boxes were drawn on; None if it does not state both."""
    width, height = record.get("width"), record.get("height")
    return None if width is None or height is None else (width, height)


def all_boxes(record: Record) -> list[Any]:
    """``box`` and, for a phrase that has several, each of ``boxes``."""
    return [record["box"], *record.get("boxes", [])]


def corners_of(bbox: list[float]) -> list[float]:
    """``[x, y, width, height]``, as COCO writes boxes, to ``[x1, y1, x2, y2]``."""
    left, top, width, height = bbox
    return [left, top, round(left + width, 4), round(top + height, 4)]


def box_problem(box: list[float], width: float, height: float) -> str | None:
    """Why an xyxy box (pixels) is no box of a ``width`` x ``height`` image; None if it is one."""
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return f'field "box": {box} is empty or inverted; write [left, top, right, bottom]'
    if min(x1, y1) < -BOX_SLACK or x2 > width + BOX_SLACK or y2 > height + BOX_SLACK:
        size = "" if math.isinf(width) or math.isinf(height) else f" of {width} x {height} pixels"
        return f'field "box": {box} lies outside the image{size}; is it xyxy in pixels?'
    return None


def file_problem(record: Record, size: tuple[int, int]) -> str | None:
    """Why the boxes of a record cannot belong to its file; None if they can.

    Args:
        record: valid on its own: its boxes lie in the image whose size it states.
        size: width and height of the file in pixels, upright.
    """
    stated = stated_size(record)
    if stated is None:
        return next(filter(None, (box_problem(box, *size) for box in all_boxes(record))), None)
    turned = stated[::-1] == tuple(size) != stated
    if _same_shape(stated, size) and not turned:
        return None
    sizes = f"the record states {stated[0]} x {stated[1]} pixels, the file has {size[0]} x {size[1]}"
    if turned or _same_shape((stated[1], stated[0]), size):
        return f"{sizes}: transposed; its boxes were drawn before the image was turned, turn them or the file"
    return f"{sizes}: not the same image at another scale; give the image that was annotated, or correct the size"


def in_file_pixels(record: Record, size: tuple[int, int]) -> Record:
    """The record with its boxes in the pixels of its file.

    Where the record states another size and only the scale differs, ``box`` and ``boxes`` are scaled, each side on its
    own, and ``width`` and ``height`` become those of the file. Else the record comes back as it is.

    Args:
        size: width and height of the file in pixels, upright (:func:`vlkit.data.images.image_size`).

    Raises:
        UserError: the stated size is transposed, or of another shape than the file.
    """
    stated = stated_size(record)
    if stated is None or stated == tuple(size):
        return record
    problem = file_problem(record, size)
    if problem:
        raise UserError(f"{record['image']} (record {record['id']!r}): {problem}; data_prep/check.py lists every one")
    across, down = size[0] / stated[0], size[1] / stated[1]

    def scaled(box: list[float]) -> list[float]:
        return [box[0] * across, box[1] * down, box[2] * across, box[3] * down]

    boxes = {"boxes": [scaled(box) for box in record["boxes"]]} if "boxes" in record else {}
    return {**record, "box": scaled(record["box"]), **boxes, "width": size[0], "height": size[1]}


def _same_shape(stated: tuple[float, float], size: tuple[int, int]) -> bool:
    """Whether one scale brings both sides to within :data:`SIZE_SLACK` of the file's."""
    (width, height), (across, down) = stated, size
    return (across - SIZE_SLACK) / width <= (down + SIZE_SLACK) / height and (down - SIZE_SLACK) / height <= (
        across + SIZE_SLACK
    ) / width
