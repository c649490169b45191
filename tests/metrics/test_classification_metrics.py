"""Classification metrics on small cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlkit.metrics.classification import (
    calibration_error,
    classification_metrics,
    confusion_matrix,
    probabilities,
    recalls,
)

SCORES = np.array(
    [
        [9.0, 8, 7, 6, 5, 4, 3],
        [9.0, 8, 7, 6, 5, 4, 3],
        [9.0, 8, 7, 6, 5, 4, 3],
        [0.0, 0, 0, 0, 0, 0, 1],
    ]
)
LABELS = np.array([0, 4, 5, 6])


def test_top_1_top_5_and_mean_per_class():
    found = classification_metrics(SCORES, LABELS)
    assert (found["top1"], found["top5"], found["mean_per_class"]) == (50, 75, 50)


def test_classes_without_images_do_not_count_in_the_mean():
    found = classification_metrics(np.eye(5)[[0, 0, 0, 2]], np.array([0, 0, 1, 2]))
    assert found["top1"] == 75 and found["mean_per_class"] == pytest.approx(100 * (1 + 0 + 1) / 3)


def test_ties_go_to_the_class_of_the_lower_number():
    scores = np.zeros((2, 8))
    found = classification_metrics(scores, np.array([0, 5]))
    assert (found["top1"], found["top5"]) == (50, 50)
    assert confusion_matrix(scores.argmax(1), np.array([0, 5]), 8)[:, 0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]


def test_with_few_classes_top_5_is_all_of_them():
    assert classification_metrics(np.array([[1.0, 0], [1, 0]]), np.array([0, 1]))["top5"] == 100
    assert classification_metrics(np.array([[3.0]]), np.array([0])) == {
        "top1": 100, "top5": 100, "mean_per_class": 100, "ece": 0
    }  # fmt: skip


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    shares = np.array([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6], [0.95, 0.05]])
    # Bin of 0.6: three rows, two right, gap |2/3 - 0.6|; bin of 0.95: one row, wrong, gap 0.95.
    expected = 100 * (3 * abs(2 / 3 - 0.6) + 0.95) / 4
    assert calibration_error(shares, np.array([0, 1, 1, 1]), bins=10) == pytest.approx(expected)
    # A confidence on the edge of a bin belongs to the lower one, and 1 to the last.
    assert calibration_error(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), bins=2) == pytest.approx(25)


def test_probabilities_of_large_logits():
    found = probabilities(np.array([[1e4, 0, -np.inf], [-1e4, -1e4, -1e4]]))
    assert found == pytest.approx(np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]))


def test_confusion_matrix_and_recalls_against_a_loop():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 50), rng.integers(0, 6, 50)
    slow = np.zeros((6, 6), int)
    for label, guess in zip(labels, predicted, strict=True):
        slow[label, guess] += 1
    assert (confusion_matrix(predicted, labels, 6) == slow).all()
    found = recalls(slow)
    assert np.isnan(found[4:]).all() and found[0] == slow[0, 0] / slow[0].sum()


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.zeros((2, 3)), np.zeros(3, int)),
        (np.zeros((2, 3)), np.array([0, 3])),
        (np.zeros((2, 3)), np.array([0, -1])),
        (np.array([[0.0, np.nan]]), np.array([0])),
        (np.array([[np.inf, 0]]), np.array([0])),
    ],
)
def test_wrong_input(scores, labels):
    with pytest.raises(ValueError):
        classification_metrics(scores, labels)
