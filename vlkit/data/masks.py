"""Boxes of COCO's masks, by pycocotools."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as _mask

from vlkit.errors import UserError

mask: Any = _mask  # its types promise less than it takes


_LARGEST = 2**16
"""Pixels of an image's side and values of a coordinate. The library draws in memory of that order."""


def box_of_mask(segmentation: Any, width: float, height: float, where: str) -> list[float]:
    """The box around a mask, ``x, y, width, height`` in whole pixels as COCO writes boxes.

    Args:
        segmentation: polygons (lists of x and y), or a run-length code: ``{"size": [height, width], "counts": …}`` with
            counts as numbers or as COCO's compressed text, str or bytes.
        width, height: of the image, pixels.
        where: file and field, for the message.

    Raises:
        UserError: it is neither, or the mask is empty.
    """
    problem = _problem(segmentation, height, width)
    if problem:
        raise UserError(f'{where}: field "segmentation" {problem}; correct the file')
    try:
        codes: Any = segmentation
        if not isinstance(codes, dict) or isinstance(codes["counts"], list):
            codes = mask.frPyObjects(codes, int(height), int(width))
        if isinstance(codes, list):
            codes = mask.merge(codes)
        box = mask.toBbox(codes).tolist()
    except Exception as error:  # the library raises errors of many types
        reason = " ".join(str(error).split())[:100]
        raise UserError(f'{where}: field "segmentation" is no mask of COCO ({reason}); correct the file') from None
    if len(box) != 4 or min(box[2:]) <= 0:
        raise UserError(f'{where}: field "segmentation" is an empty mask; remove the annotation')
    return box


def _problem(segmentation: Any, height: float, width: float) -> str | None:
    """What would end the whole process, because the library does not check it."""
    if not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST):
        return f"is of an image of {width} x {height} pixels"
    size = [int(height), int(width)]
    if isinstance(segmentation, list):
        return None if _is_near(segmentation) else "is no list of polygons of finite numbers near the image"
    if not isinstance(segmentation, dict) or segmentation.get("size") != size:
        stated = segmentation.get("size") if isinstance(segmentation, dict) else str(segmentation)[:40]
        return f"is of the size {stated}, the image {size} (height, width)"
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        return (
            None if whole and sum(counts) == size[0] * size[1] else "is no mask: its counts do not add up to the image"
        )
    # Six bits to a character, the highest of them set if the number goes on.
    packed = counts.encode(errors="replace") if isinstance(counts, str) else counts
    codes = [byte - 48 for byte in packed] if isinstance(packed, bytes) else []
    if not codes or not all(0 <= code < 64 for code in codes) or codes[-1] & 32:
        return "is no mask: its counts are no run-length code"
    return None


def _is_near(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_near, value))
    return isinstance(value, int | float) and abs(value) <= _LARGEST
