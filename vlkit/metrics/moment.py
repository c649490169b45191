"""Video moment retrieval and highlight detection (QVHighlights; moments also Charades-STA and TACoS; highlights also
TVSum and YouTube Highlights).

Windows are ``[start, end]`` in seconds, predicted ones carry a score: ``[start, end, score]``. Figures are percent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlkit.errors import UserError

RECALL_THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))
PRECISION_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# Seconds of a ground-truth window, lower end excluded.
LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, np.inf)}
HIGHLIGHT_LEVELS = {"fair": 2, "good": 3, "very_good": 4}
# Windows of a query that count for mean average precision: the first ten in list order.
WINDOWS_KEPT = 10


def moment_metrics(
    predicted: Sequence[Sequence[Sequence[float]]], target: Sequence[Sequence[Sequence[float]]]
) -> dict[str, float]:
    """Recall and average precision of predicted windows.

    Args:
        predicted: per query its ``[start, end, score]`` windows, best first: recall uses the list order, not the score.
        target: per query its ``[start, end]`` windows, at least one.

    Returns:
        ``r1@t`` and ``r5@t`` for t = 0.3 ... 0.95: best temporal IoU of the first (five) windows with any target is
        >= t; ``mean_iou`` of the first window; ``map@t`` for t = 0.5 ... 0.95 and ``map``, their mean.
    """
    if not len(predicted) == len(target) > 0:
        raise ValueError(f"{len(predicted)} predictions and {len(target)} targets do not pair up")
    first, first_five = np.zeros(len(target)), np.zeros(len(target))
    precision = np.zeros((len(target), len(PRECISION_THRESHOLDS)))
    for query, (windows, right) in enumerate(zip(predicted, target, strict=True)):
        windows, right = _windows(windows, 3, f"prediction {query}"), _windows(right, 2, f"target {query}")
        if not len(right):
            raise UserError(f"query number {query} has no target window; leave it out")
        if not len(windows):
            continue
        iou = temporal_iou(windows[:, :2], right)
        first[query], first_five[query] = iou[0].max(), iou[:5].max()
        order = np.argsort(-windows[:WINDOWS_KEPT, 2], kind="stable")
        precision[query] = [_average_precision(iou[order], threshold) for threshold in PRECISION_THRESHOLDS]
    metrics = {f"r1@{t:g}": 100 * float(np.mean(first >= t)) for t in RECALL_THRESHOLDS}
    metrics |= {f"r5@{t:g}": 100 * float(np.mean(first_five >= t)) for t in RECALL_THRESHOLDS}
    metrics["mean_iou"] = 100 * float(np.mean(first))
    means = 100 * precision.mean(0)
    metrics |= {f"map@{t:g}": float(mean) for t, mean in zip(PRECISION_THRESHOLDS, means, strict=True)}
    return metrics | {"map": float(means.mean())}


def moment_metrics_by_length(
    predicted: Sequence[Sequence[Sequence[float]]], target: Sequence[Sequence[Sequence[float]]]
) -> dict[str, dict[str, float]]:
    """:func:`moment_metrics` for short (0, 10], middle (10, 30] and long target windows, seconds.

    A group keeps the target windows in its range and the queries that have one; predictions are not filtered. Groups
    without a query are left out.
    """
    groups = {}
    for name, (low, high) in LENGTHS.items():
        kept = [[window for window in windows if low < window[1] - window[0] <= high] for windows in target]
        queries = [query for query, windows in enumerate(kept) if windows]
        if queries:
            groups[name] = moment_metrics([predicted[query] for query in queries], [kept[query] for query in queries])
    return groups


def highlight_metrics(predicted: Sequence[Sequence[float]], target: Sequence[np.ndarray]) -> dict[str, float]:
    """Highlight detection over the clips of a video.

    Args:
        predicted: per query one score per clip. For average precision, long lists are cut and short ones (none at all
            included) are padded with 0.
        target: per query int [clips, annotators], 0 ... 4; clips without annotation are 0.

    Returns:
        Per level (``fair`` >= 2, ``good`` >= 3, ``very_good`` >= 4, the one usually reported): ``<level>_hit@1``, the
        best scored clip has the level from any annotator, and ``<level>_map``, the mean over annotators and queries.
    """
    if not len(predicted) == len(target) > 0:
        raise ValueError(f"{len(predicted)} predictions and {len(target)} targets do not pair up")
    metrics = {}
    for level, minimum in HIGHLIGHT_LEVELS.items():
        hits, precisions = [], []
        for scores, labels in zip(predicted, target, strict=True):
            scores, right = np.asarray(scores, dtype=np.float64), np.asarray(labels) >= minimum
            if np.isnan(scores).any():
                raise UserError("highlight scores of a query hold NaN; the model's output is broken")
            best = int(np.argmax(scores)) if len(scores) else len(right)
            hits.append(best < len(right) and bool(right[best].any()))
            fitted = np.zeros(len(right))
            fitted[: len(scores)] = scores[: len(right)]
            precisions.append(np.mean([_ranking_precision(fitted, column) for column in right.T]))
        metrics[f"{level}_hit@1"] = 100 * float(np.mean(hits))
        metrics[f"{level}_map"] = 100 * float(np.mean(precisions))
    return metrics


def tvsum_metrics(predicted: Sequence[Sequence[float]], target: Sequence[np.ndarray]) -> dict[str, float]:
    """TVSum: ``hl_map``, the average precision of the five best scored clips, percent.

    A clip is right for an annotator if his score is above the lower median of his scores of the video. Mean over
    videos, then over annotators.

    Args:
        predicted: per video one score per clip.
        target: per video int [clips, annotators], 1 ... 5; all videos have the same number of annotators.
    """
    _check_pairs(predicted, target)
    precisions = []
    for scores, labels in zip(predicted, target, strict=True):
        labels: np.ndarray = np.asarray(labels)
        median = np.sort(labels, axis=0)[(len(labels) - 1) // 2]
        best = _ranked(scores, len(labels))[:5]
        precisions.append([list_precision(column) for column in (labels > median)[best].T])
    return {"hl_map": 100 * float(np.mean(np.mean(precisions, axis=0)))}


def youtube_metrics(predicted: Sequence[Sequence[float]], target: Sequence[Sequence[int]]) -> dict[str, float]:
    """YouTube Highlights: ``hl_map``, the average precision over all clips of a video, mean over videos, percent.

    Args:
        predicted: per video one score per clip.
        target: per video -1, 0 or 1 per clip; 1 is right.
    """
    _check_pairs(predicted, target)
    precisions = []
    for scores, match in zip(predicted, target, strict=True):
        right = np.asarray(match) > 0
        precisions.append(list_precision(right[_ranked(scores, len(right))]))
    return {"hl_map": 100 * float(np.mean(precisions))}


def list_precision(right: np.ndarray) -> float:
    """Average precision of a ranked list of bools: the trapezoid area under its precision over recall, from (0, 1).

    Recall counts the right ones of the list itself; 0 if it has none.
    """
    if not right.any():
        return 0.0
    hits = np.cumsum(right)
    recall = np.concatenate([[0.0], hits / hits[-1]])
    precision = np.concatenate([[1.0], hits / np.arange(1, len(right) + 1)])
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))


def _ranked(scores: Sequence[float], clips: int) -> np.ndarray:
    """Clips by falling score; both lists are cut to the shorter one."""
    values: np.ndarray = np.asarray(scores, dtype=np.float64)[:clips]
    if not len(values) or np.isnan(values).any():
        raise UserError("highlight scores of a video are empty or hold NaN; the model's output is broken")
    return np.argsort(-values, kind="stable")


def _check_pairs(predicted: Sequence[object], target: Sequence[object]) -> None:
    if not len(predicted) == len(target) > 0:
        raise ValueError(f"{len(predicted)} predictions and {len(target)} targets do not pair up")


def temporal_iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """IoU of every pair of windows: [n, 2] and [m, 2] -> float64 [n, m]; 0 where the union is empty."""
    left, right = np.asarray(left, dtype=np.float64)[:, None], np.asarray(right, dtype=np.float64)[None]
    overlap = np.maximum(0, np.minimum(left[..., 1], right[..., 1]) - np.maximum(left[..., 0], right[..., 0]))
    union = (left[..., 1] - left[..., 0]) + (right[..., 1] - right[..., 0]) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _average_precision(iou: np.ndarray, threshold: float) -> float:
    """Area under the interpolated precision-recall curve of ranked windows; ``iou`` is [ranked windows, targets]."""
    taken = np.zeros(iou.shape[1], dtype=bool)
    correct = np.zeros(len(iou))
    for rank, row in enumerate(iou):
        # Targets by falling IoU, of equal ones the later first, as in the published evaluator; a target that an earlier
        # window matched does not count again.
        for target in np.argsort(row, kind="stable")[::-1]:
            if row[target] >= threshold and not taken[target]:
                taken[target] = True
                correct[rank] = 1
                break
    hits = np.cumsum(correct)
    recall = np.concatenate([[0], hits / iou.shape[1]])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision))


def _ranking_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean interpolated precision over the recall levels reached, one operating point per distinct score."""
    if right.all() or not right.any():
        return float(right.all() and len(right) > 0)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the end of each run of equal scores
    hits = np.cumsum(right[order])[last]
    precision = np.maximum.accumulate((hits / (last + 1))[::-1])[::-1]
    _, first = np.unique(hits, return_index=True)
    return float(np.mean([precision[index] for index in first if hits[index] > 0]))


def _windows(values: Sequence[Sequence[float]], columns: int, name: str) -> np.ndarray:
    if not len(values):
        return np.zeros((0, columns))
    try:
        windows: np.ndarray = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        windows = np.zeros(0)
    if windows.ndim != 2 or windows.shape[1] < columns or not np.isfinite(windows).all():
        raise UserError(f"{name}: windows must be rows of {columns} finite numbers")
    return windows
