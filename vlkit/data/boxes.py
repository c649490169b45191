"""Boxes of records: their geometry, and the size of the annotated image.

A box is ``x1, y1, x2, y2`` in absolute pixels of the annotated image. A record states that image's size as ``width``
and ``height``; without them, the size of the file is assumed. If the file is a resized copy, the boxes are scaled.
Every reader of boxes calls :func:`in_file_pixels`.
"""

from __future__ import annotations

import math
from typing import Any

from vlkit.errors import UserError

Record = dict[str, Any]
BOX_SLACK = 1.0
"""Pixels by which a box may exceed its image; annotated boxes do so because of rounding."""
SIZE_SLACK = 1.0
"""Pixels by which each side of a resized copy may differ from the exact scale, because sides are whole numbers."""


def stated_size(record: Record) -> tuple[float, float] | None:
    """Width and height in pixels of the annotated image; None if the record does not state both."""
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
    """Say why an xyxy box (pixels) is invalid in a ``width`` x ``height`` image; None if it is valid."""
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return f'field "box": {box} is empty or inverted; write [left, top, right, bottom]'
    if min(x1, y1) < -BOX_SLACK or x2 > width + BOX_SLACK or y2 > height + BOX_SLACK:
        size = "" if math.isinf(width) or math.isinf(height) else f" of {width} x {height} pixels"
        return f'field "box": {box} lies outside the image{size}; is it xyxy in pixels?'
    return None


def file_problem(record: Record, size: tuple[int, int]) -> str | None:
    """Say why a record's boxes cannot belong to its file; None if they can.

    Args:
        record: a valid record; its boxes lie in the image whose size it states.
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
        return f"{sizes}: transposed; the boxes were drawn before the image was rotated; rotate the boxes or the file"
    return f"{sizes}: not a resized copy of the same image; give the annotated image, or correct the size"


def in_file_pixels(record: Record, size: tuple[int, int]) -> Record:
    """Return the record with its boxes in pixels of its file.

    If the stated size differs from the file's only in scale, ``box`` and ``boxes`` are scaled (x and y separately), and
    ``width`` and ``height`` become the file's. Otherwise the record is returned unchanged.

    Args:
        size: width and height of the file in pixels, upright (:func:`vlkit.data.images.image_size`).

    Raises:
        UserError: the stated size is transposed, or has another aspect ratio than the file.
    """
    stated = stated_size(record)
    if stated is None or stated == tuple(size):
        return record
    problem = file_problem(record, size)
    if problem:
        raise UserError(f"{record['image']} (record {record['id']!r}): {problem}; data_prep/check.py lists all of them")
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
