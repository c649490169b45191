"""The threshold with the best F1, compared with a search over every score."""

from __future__ import annotations

import numpy as np
import pytest

from vlkit.metrics import threshold
from vlkit.metrics.threshold import best_f1_threshold


def pairs(count: int = 40, noise: float = 0.8, seed: int = 0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 16))
    owner = np.repeat(np.arange(count), 3)
    texts = images[owner] + noise * rng.normal(size=(len(owner), 16))
    return *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)), owner


def test_no_threshold_has_a_better_f1(monkeypatch):
    monkeypatch.setattr(threshold, "BLOCK", 7)
    images, texts, owner = pairs()
    scores, right = texts @ images.T, owner[:, None] == np.arange(len(images))
    found = best_f1_threshold(images, texts, owner)

    def f1(least: float) -> float:
        hit = scores >= least
        return 200 * (hit & right).sum() / (hit.sum() + right.sum())

    hit = scores >= found["min_score"]
    assert found["f1"] == pytest.approx(f1(found["min_score"]), abs=1e-9)
    assert found["f1"] >= max(map(f1, scores.ravel())) - 0.3  # scores are rounded to 4 digits
    assert found["precision"] == pytest.approx(100 * (hit & right).sum() / hit.sum())
    assert found["recall"] == pytest.approx(100 * (hit & right).sum() / right.sum())


def test_separable_pairs_are_separated():
    images = np.eye(5, dtype=np.float32)
    texts = images * np.float32(0.5)
    assert best_f1_threshold(images, texts, np.arange(5)) == {
        "min_score": 0.5,
        "f1": 100,
        "precision": 100,
        "recall": 100,
    }


def test_many_texts_are_sampled(monkeypatch):
    images, texts, owner = pairs(noise=0.1)
    monkeypatch.setattr(threshold, "MOST_TEXTS", 20)
    assert best_f1_threshold(images, texts, owner)["recall"] > 90
