"""Classification: top-1, top-5, mean per class, calibration error, confusion matrix."""

from __future__ import annotations

import numpy as np

BINS = 15
"""Bins of the calibration error, as usual in the literature (Guo et al., 2017)."""


def classification_metrics(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, float]:
    """Metrics of class scores, in percent.

    Args:
        scores: float [N, C], logits: a softmax turns a row into probabilities. ``-inf`` excludes a class.
        labels: int [N], the right class of each row, 0 .. C - 1.
        bins: bins of the calibration error.

    Returns:
        ``top1``, ``top5``: share of rows whose class is among the 1 and 5 largest scores (with ties the class of the
        lower number comes first, so that ``top1`` agrees with :func:`confusion_matrix`; with fewer than five classes
        all of them count). ``mean_per_class``: mean over the classes that occur in ``labels`` of the share that is
        right. ``ece``: see :func:`calibration_error`; smaller is better.

    Raises:
        ValueError: no rows, shapes that do not fit, a label out of range, or a score that is not a number.
    """
    scores, labels = _checked(scores, labels)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = order == labels[:, None]
    matrix = confusion_matrix(order[:, 0], labels, scores.shape[1])
    return {
        "top1": 100 * float(hits[:, 0].mean()),
        "top5": 100 * float(hits.any(1).mean()),
        "mean_per_class": 100 * float(np.nanmean(recalls(matrix))),
        "ece": calibration_error(probabilities(scores), labels, bins),
    }


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax of each row of logits [N, C], float64."""
    powers = np.exp(np.asarray(scores, np.float64) - np.max(scores, axis=1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def calibration_error(shares: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of probabilities, in percent: 0 = confidence equals accuracy.

    Rows fall into ``bins`` equally wide bins (low, high] by the probability of their predicted class. The error is the
    mean over bins, weighted by their rows, of |accuracy - mean confidence|.

    Args:
        shares: probabilities [N, C].
        labels: int [N].
        bins: number of bins.
    """
    predicted = shares.argmax(1)
    confidence = shares[np.arange(len(shares)), predicted]
    right = (predicted == labels).astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return 100 * float(np.abs(gaps).sum() / len(shares))


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 [C, C]: row = right class, column = predicted class."""
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def recalls(matrix: np.ndarray) -> np.ndarray:
    """Share of right predictions for each class of a confusion matrix, [C]; NaN for a class without rows."""
    counts = matrix.sum(1).astype(np.float64)
    return np.divide(np.diag(matrix), counts, out=np.full(len(matrix), np.nan), where=counts > 0)


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not scores.size:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape}: expected [N, C] and [N], N and C at least 1"
        )
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()}: there are {scores.shape[1]} classes")
    if np.isnan(scores).any() or not np.isfinite(scores.max(1)).all():
        raise ValueError("a row of scores holds NaN, or has no finite largest score")
    return scores, labels
