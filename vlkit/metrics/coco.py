"""COCO's average precision of predicted boxes, by pycocotools itself.

Each text is an image of its own with one category, as MDETR scores referring expressions: a box is right for its text,
not for a class.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vlkit.errors import UserError

KEYS = ("ap", "ap50", "ap75")
"""The first three numbers of COCOeval: AP over IoU 0.5 to 0.95, at 0.5 and at 0.75, with at most 100 boxes a text."""
CATEGORY = {"id": 1, "name": "what the text names"}


class CocoForm(NamedTuple):
    """Boxes in the two files of COCO: ``x, y, width, height`` in pixels.

    Attributes:
        truth: content of an ``instances`` file; its images are the texts, numbered from 1.
        results: content of a results file: ``image_id``, ``category_id``, ``bbox``, ``score``.
    """

    truth: dict[str, Any]
    results: list[dict[str, Any]]


def coco_form(
    names: Sequence[str], right: Sequence[np.ndarray], boxes: Sequence[np.ndarray], scores: Sequence[np.ndarray]
) -> CocoForm:
    """Write boxes of n texts as COCO does.

    Args:
        names: name of each text, the ``file_name`` of its image.
        right: annotated boxes of each text, [k, 4] xyxy pixels.
        boxes: predicted boxes of each text, [Q, 4] xyxy pixels.
        scores: their scores, [Q].
    """
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (own, found, score) in enumerate(zip(right, boxes, scores, strict=True), 1):
        place = {"image_id": number, "category_id": 1}
        for bbox in _sides(own):
            about = {"id": len(annotations) + 1, "area": bbox[2] * bbox[3], "iscrowd": 0}
            annotations.append({**about, **place, "bbox": bbox})
        results += [
            {**place, "bbox": bbox, "score": float(s)} for bbox, s in zip(_sides(found), np.ravel(score), strict=True)
        ]
    return CocoForm({"images": images, "annotations": annotations, "categories": [CATEGORY]}, results)


def coco_metrics(form: CocoForm) -> dict[str, float]:
    """:data:`KEYS` in percent, of COCOeval.

    Raises:
        UserError: there are no texts, or no predicted boxes.
    """
    if not form.truth["annotations"] or not form.results:
        raise UserError("no boxes to score; is the split empty?")
    from pycocotools.coco import COCO  # here: it imports Matplotlib's windows
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress and a table
        truth: Any = COCO()  # its types promise less than it takes
        truth.dataset = form.truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(form.results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {key: 100 * float(value) for key, value in zip(KEYS, evaluation.stats, strict=False)}


def _sides(boxes: np.ndarray) -> list[list[float]]:
    """xyxy [k, 4] as lists of x, y, width, height."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
