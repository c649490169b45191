"""GLUE scores of one task, percent: accuracy, F1, Matthews, Pearson and Spearman correlation."""

from __future__ import annotations

import numpy as np

Array = np.ndarray | list[int] | list[float]


def accuracy(predictions: Array, labels: Array) -> float:
    """Percent of equal values, any number of classes."""
    predictions, labels = _pair(predictions, labels)
    return 100 * float(np.mean(predictions == labels))


def f1(predictions: Array, labels: Array) -> float:
    """F1 of class 1 in percent; 0 if it is neither predicted nor present."""
    predictions, labels = _pair(predictions, labels)
    positives = np.sum(predictions == 1) + np.sum(labels == 1)
    return 200 * float(np.sum((predictions == 1) & (labels == 1)) / positives) if positives else 0.0


def matthews(predictions: Array, labels: Array) -> float:
    """Matthews correlation of binary labels times 100; 0 for constant predictions or labels."""
    return pearson(predictions, labels)  # The same number for 0/1 values.


def pearson(predictions: Array, labels: Array) -> float:
    """Pearson correlation times 100; 0 for constant predictions or labels."""
    pair = _pair(predictions, labels)
    if not all(np.ptp(values) for values in pair):  # rounding of the mean would make noise of constants
        return 0.0
    left, right = (values - values.mean() for values in pair)
    scale = np.sqrt(np.sum(left**2) * np.sum(right**2))
    return 100 * float(np.sum(left * right) / scale) if scale > 0 else 0.0


def spearman(predictions: Array, labels: Array) -> float:
    """Spearman correlation times 100, average ranks for ties; 0 for constant predictions or labels."""
    predictions, labels = _pair(predictions, labels)
    return pearson(_average_ranks(predictions), _average_ranks(labels))


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _pair(predictions: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predictions.ndim != 1 or predictions.shape != labels.shape or not len(labels):
        raise ValueError(f"{predictions.shape} predictions and {labels.shape} labels do not pair up")
    if np.isnan(predictions).any() or np.isnan(labels).any():
        raise ValueError("predictions or labels hold NaN")
    return predictions, labels
