"""Boxes of COCO's masks, by pycocotools."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as _mask

from vlkit.errors import UserError

mask: Any = _mask  # its types promise less than it takes


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
