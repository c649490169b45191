"""Re-ranking against plain definitions, and on scores with a hub."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlkit.metrics.rerank import dual_softmax, query_bank, reranked_metrics
from vlkit.metrics.video import multi_sentence_metrics, single_sentence_metrics


def scores(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.2, 0.6, (rows, columns)).astype(np.float32)


def test_dual_softmax_equals_its_definition():
    similarity = scores(4, 3)
    found = dual_softmax(similarity, scale=10)
    for q in range(4):
        for c in range(3):
            total = sum(math.exp(10 * float(similarity[other, c])) for other in range(4))
            share = math.exp(10 * float(similarity[q, c])) / total
            assert found[q, c] == pytest.approx(10 * float(similarity[q, c]) * share)


def test_query_bank_equals_its_definition():
    similarity, bank = scores(5, 4), scores(3, 4, seed=1)
    found = query_bank(similarity, bank, scale=20)
    hubs = {int(row.argmax()) for row in bank}
    plain = 0
    for q in range(5):
        row = np.exp(20 * similarity[q].astype(float))
        if int(similarity[q].argmax()) in hubs:
            row = row / np.exp(20 * bank.astype(float)).sum(0)
        else:
            plain += 1
        np.testing.assert_allclose(found[q], np.log(row), atol=1e-6)
    assert 0 < plain < 5, "both cases must occur"


def test_both_pull_down_a_hub():
    """Video 0 is near to every sentence; each sentence is nearest to its own video otherwise."""
    similarity = np.full((6, 6), 0.1, dtype=np.float32) + 0.3 * np.eye(6, dtype=np.float32)
    similarity[:, 0] = 0.45
    similarity[0, 0] = 0.6
    assert single_sentence_metrics(similarity)["t2v_r1"] == pytest.approx(100 / 6)
    again = reranked_metrics(dual_softmax(similarity), dual_softmax(similarity.T), np.arange(6))
    assert again["t2v_r1"] == 100
    banked = query_bank(similarity, similarity)
    assert reranked_metrics(banked, similarity.T, np.arange(6))["t2v_r1"] == 100


@pytest.mark.parametrize("owner", [np.arange(5), np.array([0, 0, 1, 2, 2])], ids=["single", "several"])
def test_scores_as_they_are_give_the_plain_metrics(owner: np.ndarray):
    similarity = scores(5, owner.max() + 1)
    single = len(owner) == owner.max() + 1
    plain = single_sentence_metrics(similarity) if single else multi_sentence_metrics(similarity, owner)
    assert reranked_metrics(similarity, similarity.T, owner) == pytest.approx(plain)


def test_each_direction_has_its_own_scores():
    good, bad = np.eye(6, dtype=np.float32), 1 - np.eye(6, dtype=np.float32)
    found = reranked_metrics(good, bad, np.arange(6))
    assert (found["t2v_r1"], found["v2t_r1"], found["v2t_r5"]) == (100, 0, 0)
    assert found["rsum"] == sum(found[f"{d}_r{k}"] for d in ("t2v", "v2t") for k in (1, 5, 10))
    with pytest.raises(ValueError, match="video_to_text"):
        reranked_metrics(good, np.ones((5, 6)), np.arange(6))
