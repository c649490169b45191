"""Grounding metrics: referring expressions (one box per query) and phrase grounding (Flickr30k Entities).

Boxes are absolute ``x1, y1, x2, y2`` pixels of the original image with continuous areas (no +1). A box is correct if
IoU >= 0.5. Everything is computed in float32, as in published evaluators, because this decides boxes exactly at the
threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlkit.errors import UserError

Overlap = Literal["iou", "giou"]
RECALL_AT = (1, 5, 10)


def box_iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, [..., 4] each and broadcast; float32 [...]. Empty boxes give 0."""
    return _overlap(left, right)[0]


def box_giou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Generalised IoU = IoU - (hull - union) / hull, hull the smallest enclosing box; in (-1, 1], at most the IoU."""
    iou, union = _overlap(left, right)
    left, right = np.asarray(left, dtype=np.float32), np.asarray(right, dtype=np.float32)
    hull = _area(np.concatenate([np.minimum(left, right)[..., :2], np.maximum(left, right)[..., 2:]], axis=-1))
    return iou - _divided(hull - union, hull)


def grounding_metrics(predicted: np.ndarray, target: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Referring expressions with one predicted box each, [n, 4] against [n, 4].

    Returns:
        ``acc@0.5``, percent of boxes with IoU >= ``threshold``, and ``mean_iou``, percent.

    Raises:
        UserError: a box is not finite, or there are no boxes.
        ValueError: shapes differ.
    """
    predicted, target = _boxes(predicted, "predicted boxes"), _boxes(target, "target boxes")
    if predicted.shape != target.shape:
        raise ValueError(f"predicted boxes {predicted.shape} and target boxes {target.shape} differ in number")
    if not len(target):
        raise UserError("no boxes to score; is the split empty?")
    iou = box_iou(predicted, target)
    return {f"acc@{threshold:g}": _percent(iou >= threshold), "mean_iou": 100 * float(iou.mean(dtype=np.float64))}


def precision_at_k(
    predicted: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    target: np.ndarray,
    overlap: Overlap = "iou",
    threshold: float = 0.5,
) -> dict[str, float]:
    """Percent of queries with a correct box among the k best scored ones: ``p@1``, ``p@5``, ``p@10``.

    Published MDETR-family figures threshold the generalised IoU, which is stricter: ``overlap="giou"``, keys
    ``p@1_giou``, ... Boxes are in the order of :func:`ranking`.

    Args:
        predicted: per query [Q, 4] boxes; Q may differ, and no box is a miss.
        scores: per query [Q].
        target: [n, 4], the ground-truth box of each query.
    """
    target = _boxes(target, "target boxes")
    if not len(predicted) == len(scores) == len(target) > 0:
        raise ValueError(f"{len(predicted)} predictions, {len(scores)} scores and {len(target)} targets do not pair up")
    measure = box_giou if overlap == "giou" else box_iou
    first_hit = np.empty(len(target))
    for query, (boxes, values, right) in enumerate(zip(predicted, scores, target, strict=True)):
        boxes, values = _boxes(boxes, f"predicted boxes of query {query}"), np.asarray(values)
        if values.shape != boxes.shape[:1] or np.isnan(values).any():
            raise ValueError(f"query {query} has {len(boxes)} boxes and scores {values.tolist()}")
        first_hit[query] = _first_hit(measure(boxes[ranking(boxes, values)], right) >= threshold)
    suffix = "_giou" if overlap == "giou" else ""
    return {f"p@{k}{suffix}": _percent(first_hit < k) for k in RECALL_AT}


def ranking(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Order of boxes [Q, 4] by falling score [Q]; equal scores by the larger x1, then y1, x2, y2, as in published
    evaluators. int64 [Q].
    """
    return np.lexsort((*boxes.T[::-1], scores))[::-1]


def phrase_recall(
    ranked: Sequence[np.ndarray],
    target: Sequence[np.ndarray],
    categories: Sequence[Sequence[str]],
    protocol: Literal["any_box", "merged_boxes"],
    threshold: float = 0.5,
) -> dict[str, float]:
    """Phrase grounding recall of Flickr30k Entities, percent of phrases over the whole split.

    Args:
        ranked: per phrase [Q, 4] boxes, best first; no box is a miss.
        target: per phrase its [G, 4] annotated boxes, G >= 1.
        categories: per phrase its categories; a phrase counts in each of them and once in all.
        protocol: "any_box": a hit on any of the annotated boxes counts. "merged_boxes": the smallest box around all of
            them must be hit. The figures differ by several points; always say which.

    Returns:
        ``r@1``, ``r@5``, ``r@10``, ``upper_bound`` (any rank) over all phrases, and each with ``_<category>``.
    """
    if protocol not in ("any_box", "merged_boxes"):
        raise ValueError(f"protocol is {protocol!r}, expected 'any_box' or 'merged_boxes'")
    if not len(ranked) == len(target) == len(categories) > 0:
        lengths = f"{len(ranked)} predictions, {len(target)} targets and {len(categories)} categories"
        raise ValueError(f"{lengths} do not pair up")
    groups: dict[str, list[float]] = {}
    for phrase, (boxes, right, names) in enumerate(zip(ranked, target, categories, strict=True)):
        boxes, right = _boxes(boxes, f"ranked boxes of phrase {phrase}"), _boxes(right, f"boxes of phrase {phrase}")
        if protocol == "merged_boxes":
            right = np.concatenate([right[:, :2].min(0), right[:, 2:].max(0)])[None]
        hits = np.any(box_iou(boxes[:, None], right[None]) >= threshold, axis=1)
        for name in ("", *(f"_{category}" for category in names)):
            groups.setdefault(name, []).append(_first_hit(hits))
    limits = [(f"r@{k}", k) for k in RECALL_AT] + [("upper_bound", np.inf)]
    return {
        f"{key}{name}": _percent(np.array(groups[name]) < limit) for key, limit in limits for name in sorted(groups)
    }


def _overlap(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.asarray(left, dtype=np.float32), np.asarray(right, dtype=np.float32)
    shared = _area(
        np.concatenate([np.maximum(left, right)[..., :2], np.minimum(left, right)[..., 2:]], axis=-1), clamp=True
    )
    union = _area(left) + _area(right) - shared
    return _divided(shared, union), union


def _area(boxes: np.ndarray, clamp: bool = False) -> np.ndarray:
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.prod(np.maximum(sides, 0) if clamp else sides, axis=-1)


def _divided(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotient, 0 where the divisor is not positive."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _boxes(values: np.ndarray, name: str) -> np.ndarray:
    boxes = np.asarray(values, dtype=np.float32).reshape(-1, 4)
    broken = np.flatnonzero(~np.isfinite(boxes).all(1))
    if len(broken):
        raise UserError(f"{name}: row {broken[0]} is not finite; the model's output is broken")
    return boxes


def _first_hit(hits: np.ndarray) -> float:
    """Zero-based rank of the first correct box, infinite if there is none."""
    return float(np.argmax(hits)) if hits.any() else np.inf


def _percent(hits: np.ndarray) -> float:
    return 100 * float(np.count_nonzero(hits)) / len(hits)
