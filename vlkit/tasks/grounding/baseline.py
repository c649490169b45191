"""The blind baseline of grounding: one box for every text, chosen on the training split without seeing images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlkit.data.boxes import stated_size
from vlkit.data.images import record_image_size
from vlkit.data.manifest import Dataset
from vlkit.metrics.grounding import box_iou, grounding_metrics, precision_at_k

CANDIDATES = 400
"""Training boxes tried as the constant box."""
SAMPLE = 5_000
"""Most training boxes that candidates are measured on."""
SIDES = 20
"""Side lengths tried for the centred box, in each direction."""


def blind_boxes(dataset: Dataset, records: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, np.ndarray]:
    """The best constant box and the best centred box, as shares of the image.

    Args:
        dataset: gives the image files of records without a stated size.
        records: records of the training split, with ``box`` in pixels.
        seed: seed of the sample.

    Returns:
        ``constant`` (the best of the median box and :data:`CANDIDATES` training boxes) and ``centre``: float32 [4].
        The best box has the most training boxes at IoU >= 0.5, then the highest mean IoU.
    """
    boxes = _targets(records) / image_sides(dataset, records)
    rng = np.random.default_rng(seed)
    sample = boxes[rng.permutation(len(boxes))[:SAMPLE]]
    tried = np.concatenate([np.median(boxes, axis=0, keepdims=True), sample[:CANDIDATES]])
    sides = np.linspace(1 / SIDES, 1, SIDES, dtype=np.float32)
    width, height = (side.ravel() for side in np.meshgrid(sides, sides))
    centred = np.stack([0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2], axis=1)
    return {"constant": _best(tried, sample), "centre": _best(centred.astype(np.float32), sample)}


def blind_metrics(
    blind: dict[str, np.ndarray], dataset: Dataset, records: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Scores of :func:`blind_boxes` on a split, in percent.

    Returns:
        ``acc@0.5``, ``mean_iou`` and ``acc@0.5_giou`` of the better box, and ``constant_box_acc@0.5`` and
        ``centre_box_acc@0.5`` of each box.
    """
    target, pixels = _targets(records), image_sides(dataset, records)
    scored = {}
    for name, box in blind.items():
        predicted = box * pixels
        metrics = grounding_metrics(predicted, target)
        giou = precision_at_k(list(predicted[:, None]), [np.ones(1)] * len(target), target, "giou")["p@1_giou"]
        scored[name] = {**metrics, "acc@0.5_giou": giou}
    best = max(scored.values(), key=lambda metrics: (metrics["acc@0.5"], metrics["mean_iou"]))
    return {**best, **{f"{name}_box_acc@0.5": metrics["acc@0.5"] for name, metrics in scored.items()}}


def image_sides(dataset: Dataset, records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Width, height, width, height in pixels of the image on which each record's box was annotated, float32 [n, 4]: the
    stated size, else that of the file. Shares of a resized copy are the same.
    """
    read: dict[str, tuple[float, float]] = {}

    def size_of(record: dict[str, Any]) -> tuple[float, float]:
        name = record["image"]
        return stated_size(record) or read.get(name) or read.setdefault(name, record_image_size(dataset, record))

    return np.array([2 * size_of(record) for record in records], dtype=np.float32)


def _targets(records: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([record["box"] for record in records], dtype=np.float32)


def _best(candidates: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    iou = np.stack([box_iou(candidate[None], boxes) for candidate in candidates])
    order = np.lexsort((iou.mean(1), (iou >= 0.5).mean(1)))
    return candidates[order[-1]]
