"""Boxes in files of COCO's layout: a list ``images`` and a list ``annotations``, joined by ``image_id``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlkit.data.boxes import box_problem, corners_of
from vlkit.data.masks import box_of_mask
from vlkit.data.sources.common import take, take_id
from vlkit.errors import UserError

Placed = tuple[str, dict[str, Any]]
"""Place of an annotation, for messages, and the annotation."""


def annotations_by_image(content: Any, path: str) -> dict[int, list[Placed]]:
    """Id of an image -> its annotations, in the order of the file at ``path``."""
    found: dict[int, list[Placed]] = {}
    for index, annotation in enumerate(take(content, "annotations", list, path)):
        where = f"{path}: annotations[{index}]"
        found.setdefault(take_id(annotation, "image_id", where), []).append((where, annotation))
    return found


def refuse_strays(left: Mapping[int, list[Placed]], path: str) -> None:
    """Refuse annotations that are left after those of every image were taken."""
    if left:
        where = next(iter(left.values()))[0][0]
        raise UserError(f'{where}: field "image_id": no such image in {path}; is the file complete?')


def annotated_box(annotation: dict[str, Any], image: dict[str, Any], where: str) -> tuple[list[float], str | None]:
    """``bbox`` (xywh) as xyxy, and what is wrong with it. Nothing is clipped, because the metric uses boxes as
    annotated. An annotation that has only a mask gets the box around it.
    """
    if "bbox" not in annotation and "segmentation" in annotation:
        annotation = {"bbox": box_of_mask(annotation["segmentation"], image["width"], image["height"], where)}
    bbox = take(annotation, "bbox", list, where)
    if len(bbox) != 4 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in bbox):
        raise UserError(f'{where}: field "bbox" is {str(bbox)[:60]}; expected are four numbers [x, y, width, height]')
    box = corners_of(bbox)
    problem = box_problem(box, image["width"], image["height"])
    return box, f"{where}: bbox {bbox} (xywh) gives {problem}" if problem else None
