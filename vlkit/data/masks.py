"""Boxes of COCO's masks, by pycocotools."""

from __future__ import annotations

import math
from typing import Any

from pycocotools import mask as _mask

from vlkit.errors import UserError

mask: Any = _mask  # its types promise less than it takes


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_finite, value))
    return isinstance(value, int | float) and math.isfinite(value)


def box_of_mask(segmentation: Any, width: float, height: float, where: str) -> list[float]:
    """The box around a mask, ``x, y, width, height`` in whole pixels as COCO writes boxes.

    Args:
        segmentation: polygons (lists of x and y), or a run-length code: ``{"size": [height, width], "counts": …}`` with
            counts as numbers or as COCO's compressed text.
        width, height: of the image, pixels.
        where: file and field, for the message.

    Raises:
        UserError: it is neither, or the mask is empty.
    """
    # The library does not check these: it would end the whole process.
    size = [int(height), int(width)]
    if isinstance(segmentation, dict) and segmentation.get("size") != size:
        stated = f"{segmentation.get('size')}, the image {size} (height, width)"
        raise UserError(f'{where}: field "segmentation" is of the size {stated}; correct the file')
    if isinstance(segmentation, list) and not _finite(segmentation):
        raise UserError(f'{where}: field "segmentation" is no list of polygons of finite numbers; correct the file')
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
