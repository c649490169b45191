"""Text-video retrieval and moment retrieval against slow references and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlkit.errors import UserError
from vlkit.metrics import video
from vlkit.metrics.moment import highlight_metrics, moment_metrics, moment_metrics_by_length, temporal_iou
from vlkit.metrics.video import multi_sentence_metrics, single_sentence_metrics, text_video_metrics


def test_single_sentence_worked_example():
    """Rows are sentences. t2v ranks 0, 1, 0, 0; v2t: video 0 loses to sentence 1."""
    similarity = np.array([[0.5, 0.1, 0.1, 0], [0.6, 0.3, 0.2, 0], [0.1, 0.2, 0.9, 0], [0, 0, 0, 0.7]])
    metrics = single_sentence_metrics(similarity)
    assert (metrics["t2v_r1"], metrics["t2v_r5"]) == (75.0, 100.0)
    assert (metrics["t2v_median_rank"], metrics["t2v_mean_rank"]) == (1.0, 1.25)
    assert (metrics["v2t_r1"], metrics["v2t_tied"]) == (75.0, 0.0)
    assert metrics["rsum"] == 550.0


def test_median_of_single_sentence_may_be_a_half():
    assert single_sentence_metrics([[1.0, 0.0], [1.0, 0.5]])["t2v_median_rank"] == 1.5


def test_ties_count_once_and_against_the_query():
    metrics = single_sentence_metrics(np.zeros((6, 6)))
    assert (metrics["t2v_r5"], metrics["t2v_r10"], metrics["t2v_mean_rank"]) == (0.0, 100.0, 6.0)
    assert metrics["t2v_tied"] == 100
    assert single_sentence_metrics(np.zeros((6, 6)), ties="optimistic")["rsum"] == 600


def slow_multi(similarity: np.ndarray, owner: np.ndarray) -> dict[str, list[int]]:
    """Pessimistic ranks of the three directions, one query at a time."""
    videos = similarity.shape[1]
    t2v = [int((row >= row[own]).sum()) - 1 for row, own in zip(similarity, owner, strict=True)]
    grouped, sentence = [], []
    for v in range(videos):
        best = [similarity[owner == w, v].max() for w in range(videos)]
        grouped.append(sum(score >= best[v] for w, score in enumerate(best) if w != v))
        sentence.append(int((similarity[owner != v, v] >= best[v]).sum()))
    return {"t2v": t2v, "v2t": grouped, "v2t_sentence": sentence}


@pytest.mark.parametrize("digits", [1, 6])
def test_multi_sentence_equals_a_slow_reference(digits, monkeypatch):
    monkeypatch.setattr(video, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(20), rng.integers(0, 20, 41)])
    rng.shuffle(owner)
    similarity = (rng.standard_normal((61, 20)) + 1.5 * (owner[:, None] == np.arange(20))).round(digits)
    metrics, expected = multi_sentence_metrics(similarity, owner), slow_multi(similarity, owner)
    for name, ranks in expected.items():
        assert metrics[f"{name}_r1"] == pytest.approx(100 * np.mean(np.array(ranks) < 1))
        assert metrics[f"{name}_r10"] == pytest.approx(100 * np.mean(np.array(ranks) < 10))
        assert metrics[f"{name}_mean_rank"] == pytest.approx(np.mean(ranks) + 1)
    assert metrics["t2v_std_rank"] == pytest.approx(np.std(expected["t2v"]))
    assert (
        metrics["v2t_r1"] > metrics["v2t_sentence_r1"] or metrics["v2t_mean_rank"] < metrics["v2t_sentence_mean_rank"]
    )


def test_three_medians_differ():
    """t2v ranks 0 and 1 (an even count): lower median 1, where the plain one would be 1.5."""
    similarity = np.array([[0.9, 0.1], [0.2, 0.1], [0.1, 0.8], [0.7, 0.3]])
    assert multi_sentence_metrics(similarity, [0, 1, 1, 1])["t2v_median_rank"] == 1.0


def test_embeddings_give_the_figures_of_their_similarity():
    rng = np.random.default_rng(4)
    owner = np.concatenate([np.arange(15), rng.integers(0, 15, 30)])
    videos = rng.standard_normal((15, 32))
    texts = videos[owner] + 2 * rng.standard_normal((45, 32))
    assert text_video_metrics(videos, texts, owner) == multi_sentence_metrics(texts @ videos.T, owner)
    single = text_video_metrics(torch.from_numpy(videos), torch.from_numpy(texts[:15]), torch.arange(15))
    assert single == single_sentence_metrics(texts[:15] @ videos.T)
    assert "t2v_std_rank" not in single
    shuffled = rng.permutation(15)  # One sentence a video, in another order than the videos.
    assert text_video_metrics(videos, texts[shuffled], shuffled) == single


def test_collapsed_embeddings_score_zero_in_every_direction():
    metrics = text_video_metrics(np.full((12, 512), 0.0442), np.full((36, 512), 0.0442), np.arange(36) // 3)
    assert [metrics[f"{name}_r10"] for name in ("t2v", "v2t", "v2t_sentence")] == [0, 0, 0]


def test_wrong_similarities_are_errors():
    with pytest.raises(ValueError, match="as many sentences as videos"):
        single_sentence_metrics(np.zeros((3, 2)))
    with pytest.raises(UserError, match="NaN"):
        single_sentence_metrics([[0.0, math.nan], [0.0, 1.0]])
    with pytest.raises(UserError, match="1 of 3 images have no text"):
        multi_sentence_metrics(np.zeros((3, 3)), [0, 0, 1])


def test_temporal_iou():
    iou = temporal_iou([[0, 10], [5, 5]], [[5, 15], [20, 30], [5, 5]])
    np.testing.assert_allclose(iou, [[1 / 3, 0, 0], [0, 0, 0]])


def test_moment_recall_goes_by_list_order_and_precision_by_score():
    predicted = [[[50, 60, 0.9], [0, 10, 0.1]], []]
    target = [[[0, 10]], [[0, 5]]]
    metrics = moment_metrics(predicted, target)
    assert (metrics["r1@0.5"], metrics["r5@0.5"], metrics["mean_iou"]) == (0, 50, 0)
    # Query 0: a false positive, then the hit: precision 1/2 at recall 1. Query 1 predicts nothing.
    assert metrics["map@0.5"] == metrics["map"] == 25
    better = moment_metrics([[[50, 60, 0.1], [0, 10, 0.9]], []], target)
    assert (better["r1@0.5"], better["map"]) == (0, 50)


def test_moment_precision_takes_a_target_once_and_ten_windows():
    twice = [[[0, 10, 0.9], [0, 10, 0.8], [20, 30, 0.7]]]
    assert moment_metrics(twice, [[[0, 10], [20, 30]]])["map"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    late = [[[50, 60, 0.1]] * 10 + [[0, 10, 0.9]]]
    assert moment_metrics(late, [[[0, 10]]])["map"] == 0


def test_of_equally_near_targets_the_later_one_is_taken():
    # The first window is as near to both targets; the second fits only one of them.
    targets = [[[0, 10], [10, 20]]]
    assert moment_metrics([[[0, 20, 0.9], [0, 10, 0.8]]], targets)["map@0.5"] == 100
    assert moment_metrics([[[0, 20, 0.9], [10, 20, 0.8]]], targets)["map@0.5"] == 50


def test_a_query_without_highlight_scores_has_zeros():
    labels = [np.array([[4, 0], [0, 4]])]
    assert highlight_metrics([[]], labels) == highlight_metrics([[]], labels) | {
        "very_good_hit@1": 0.0,
        "very_good_map": highlight_metrics([[0.0, 0.0]], labels)["very_good_map"],
    }


def test_moment_groups_filter_targets_only():
    predicted = [[[0, 40, 1.0]], [[0, 10, 1.0]]]
    groups = moment_metrics_by_length(predicted, [[[0, 10], [0, 40]], [[0, 10]]])
    assert set(groups) == {"short", "long"}  # no query has a middle window: no figure, not another group's
    assert groups["short"]["r1@0.5"] == 50
    assert groups["long"]["r1@0.5"] == 100
    with pytest.raises(UserError, match="no target window"):
        moment_metrics([[]], [[]])
    for windows in ([[0, 1]], [[0, 1, 2], [3]], [[0, 1, float("nan")]]):
        with pytest.raises(UserError, match="prediction 0: windows must be rows of 3"):
            moment_metrics([windows], [[[0, 1]]])


def test_highlights():
    labels = np.array([[4, 0], [0, 0], [4, 4], [0, 0]])
    metrics = highlight_metrics([[0.9, 0.1, 0.8, 0.2]], [labels])
    assert (metrics["very_good_hit@1"], metrics["very_good_map"]) == (100, pytest.approx(100 * (1 + 0.5) / 2))
    # The best clip lies past the end: a miss. Short scores are filled with 0, which beats the negative ones.
    assert highlight_metrics([[0, 0, 0, 0, 1]], [labels])["fair_hit@1"] == 0
    filled = highlight_metrics([[-1.0, -2.0]], [labels])
    assert filled["good_hit@1"] == 100
    assert filled["good_map"] == pytest.approx(100 * np.mean([(2 / 3 + 2 / 3) / 2, 0.5]))
