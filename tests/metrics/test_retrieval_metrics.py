"""Image-text retrieval: ranks against a slow count, ties, groups, folds, and the memory of a large evaluation."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.metric_fixtures import check_folder
from vlkit.errors import UserError
from vlkit.metrics import embedding_ranks
from vlkit.metrics.embedding_ranks import ranks_from_embeddings
from vlkit.metrics.ranks import ranks_from_similarity
from vlkit.metrics.retrieval import fold_metrics, image_text_metrics, image_text_metrics_of_similarity

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def counted_ranks(similarity: np.ndarray, owner: np.ndarray, ties: str) -> tuple[list[int], list[int]]:
    """Ranks by the definition, one query at a time."""
    before = np.greater_equal if ties == "pessimistic" else np.greater
    i2t, t2i = [], []
    for image, scores in enumerate(similarity):
        own = owner == image
        i2t.append(int(before(scores[~own], scores[own].max()).sum()))
    for text, image in enumerate(owner):
        others = np.arange(len(similarity)) != image
        t2i.append(int(before(similarity[others, text], similarity[image, text]).sum()))
    return i2t, t2i


def distinct_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Scores in extended precision, made truly equal for equal vectors."""
    _, image_first, image_of = np.unique(images, axis=0, return_index=True, return_inverse=True)
    _, text_first, text_of = np.unique(texts, axis=0, return_index=True, return_inverse=True)
    scores = images[image_first].astype(np.longdouble) @ texts[text_first].astype(np.longdouble).T
    return scores[image_of.ravel()][:, text_of.ravel()]


def random_groups(rng: np.random.Generator, images: int) -> np.ndarray:
    """One to four or so texts an image, shuffled."""
    owner = np.concatenate([np.arange(images), rng.integers(0, images, 2 * images)])
    rng.shuffle(owner)
    return owner


def embeddings(kind: str, rng: np.random.Generator, owner: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    images = rng.standard_normal((owner.max() + 1, 67))
    texts = images[owner] + 2 * rng.standard_normal((len(owner), 67))
    if kind == "constant":
        images[:], texts[:] = 1, 1
    elif kind == "duplicates":
        images = images[rng.integers(0, len(images), len(images))]
        texts = texts[rng.integers(0, len(texts), len(texts))]
    elif kind == "zero texts":
        texts[::2] = 0
    elif kind == "nearly collapsed":
        centre = rng.standard_normal(67)
        images, texts = centre + 1e-3 * images, centre + 1e-3 * texts
    elif kind == "coarse":
        images, texts = images.round(), texts.round()
    elif kind == "tiny and huge":
        images, texts = images * 1e-20, texts * 1e8
    if kind in ("plain", "constant", "duplicates", "nearly collapsed"):
        images, texts = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, texts))
    return images.astype(dtype), texts.astype(dtype)


KINDS = ("plain", "constant", "duplicates", "zero texts", "nearly collapsed", "coarse", "tiny and huge")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_embedding_ranks_equal_a_slow_count(kind, dtype, monkeypatch):
    if (kind, dtype) == ("tiny and huge", "float16"):
        dtype = "float32"  # out of range in half precision
    monkeypatch.setattr(embedding_ranks, "PRODUCT_BYTES", 8000)
    monkeypatch.setattr(embedding_ranks, "COUNT_ROWS", 16)
    rng = np.random.default_rng(7)
    for images in (1, 2, 41):
        owner = random_groups(rng, images)
        image_vectors, text_vectors = embeddings(kind, rng, owner, dtype)
        scores = distinct_scores(image_vectors, text_vectors)
        for ties in ("pessimistic", "optimistic"):
            ranks = ranks_from_embeddings(image_vectors, text_vectors, owner, ties)
            assert (ranks.i2t.tolist(), ranks.t2i.tolist()) == counted_ranks(scores, owner, ties)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_similarity_ranks_equal_a_slow_count(ties, dtype):
    rng = np.random.default_rng(3)
    for images in (1, 2, 150):
        owner = random_groups(rng, images)
        similarity = rng.standard_normal((images, len(owner))).round(1).astype(dtype)
        ranks = ranks_from_similarity(similarity, owner, ties)
        assert (ranks.i2t.tolist(), ranks.t2i.tolist()) == counted_ranks(similarity, owner, ties)


def test_ranks_equal_a_full_sort():
    """With blocks of the real size and without ties, a sort of each row and column says the same."""
    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((300, 64)))
    owner = np.repeat(np.arange(300), 5)
    texts = unit(images[owner] + rng.standard_normal((1500, 64)) / 4)
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    order = np.argsort(-scores, axis=1)
    i2t = [int(np.flatnonzero(owner[row] == image)[0]) for image, row in enumerate(order)]
    t2i = [int(np.flatnonzero(row == owner[text])[0]) for text, row in enumerate(np.argsort(-scores.T, axis=1))]
    ranks = ranks_from_embeddings(images, texts, owner)
    assert 0 < np.mean(ranks.t2i > 0) < 1
    assert (ranks.i2t.tolist(), ranks.t2i.tolist()) == (i2t, t2i)


def test_ranks_do_not_depend_on_order_or_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    owner = random_groups(rng, 60)
    images, texts = embeddings("duplicates", rng, owner, "float32")
    expected = ranks_from_embeddings(images, texts, owner)
    image_order, text_order = rng.permutation(60), rng.permutation(len(owner))
    monkeypatch.setattr(embedding_ranks, "PRODUCT_BYTES", 1)
    monkeypatch.setattr(embedding_ranks, "COUNT_ROWS", 7)
    moved = ranks_from_embeddings(images[image_order], texts[text_order], np.argsort(image_order)[owner[text_order]])
    np.testing.assert_array_equal(moved.i2t, expected.i2t[image_order])
    np.testing.assert_array_equal(moved.t2i, expected.t2i[text_order])
    np.testing.assert_array_equal(moved.t2i_tied, expected.t2i_tied[text_order])


@pytest.mark.parametrize("value", [1.0, 0.1, 0.0442, 3.3e-5])
def test_a_collapsed_model_scores_zero_and_is_seen(value):
    """All embeddings equal; constants whose sums round to one side would otherwise beat their own bound."""
    metrics = image_text_metrics(
        np.full((50, 512), value, np.float32), np.full((250, 512), value, np.float32), np.arange(250) // 5
    )
    assert metrics["rsum"] == 0
    assert metrics["i2t_tied"] == metrics["t2i_tied"] == 100
    optimistic = image_text_metrics(np.ones((50, 8)), np.ones((250, 8)), np.arange(250) // 5, ties="optimistic")
    assert optimistic["rsum"] == 600


def test_worked_example():
    """Two images, three texts: image 0 owns texts 0 and 2."""
    similarity = [[0.1, 0.9, 0.3], [0.2, 0.8, 0.3]]
    metrics = image_text_metrics_of_similarity(np.array(similarity), [0, 1, 0])
    # i2t: image 0 has text 1 before its best (0.3), image 1 finds text 1 first. t2i: text 0 and 2 (tied) lose, and
    # text 1 loses to image 0 (0.9 > 0.8).
    assert (metrics["i2t_r1"], metrics["t2i_r1"], metrics["i2t_r5"]) == (50.0, 0.0, 100.0)
    assert metrics["i2t_median_rank"] == 1.0  # floor(0.5) + 1
    assert metrics["t2i_mean_rank"] == 2.0
    assert metrics["t2i_tied"] == pytest.approx(100 / 3)
    assert metrics["rsum"] == sum(metrics[f"{side}_r{k}"] for side in ("i2t", "t2i") for k in (1, 5, 10))


def test_torch_tensors_of_any_float_dtype():
    images, texts, owner = torch.randn(20, 16), torch.randn(60, 16), torch.arange(60) // 3
    expected = image_text_metrics(images.numpy(), texts.numpy(), owner.numpy())
    assert image_text_metrics(images.requires_grad_(), texts, owner) == expected
    rounded = images.detach().bfloat16(), texts.bfloat16()
    assert image_text_metrics(*rounded, owner) == image_text_metrics(*(v.double() for v in rounded), owner)


def test_low_matmul_precision_of_torch_does_not_reach_the_ranks():
    owner = np.arange(400) // 4
    rng = np.random.default_rng(0)
    images, texts = embeddings("nearly collapsed", rng, owner, "float32")
    expected = ranks_from_embeddings(images, texts, owner)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ranks = ranks_from_embeddings(torch.from_numpy(images), torch.from_numpy(texts), owner)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(ranks.t2i, expected.t2i)


def test_folds_are_consecutive_and_have_their_own_candidates():
    rng = np.random.default_rng(2)
    owner = random_groups(rng, 12)
    images, texts = embeddings("plain", rng, owner, "float32")
    folds = fold_metrics(images, texts, owner, folds=3)
    parts = [
        image_text_metrics(images[s : s + 4], texts[(owner >= s) & (owner < s + 4)], owner[owner // 4 == s // 4] - s)
        for s in (0, 4, 8)
    ]
    assert folds == {key: pytest.approx(np.mean([part[key] for part in parts])) for key in parts[0]}
    with pytest.raises(ValueError, match="12 images do not divide into 5"):
        fold_metrics(images, texts, owner, folds=5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_scores_are_errors(value):
    vectors = np.ones((4, 3), np.float32)
    vectors[2, 1] = value
    with pytest.raises(UserError, match=r"text_embeddings: 1 of 4 rows .* row 2"):
        image_text_metrics(np.ones((4, 3), np.float32), vectors, np.arange(4))
    similarity = np.zeros((3, 3))
    similarity[1, 2] = np.nan
    with pytest.raises(UserError, match="NaN at row 1, column 2"):
        image_text_metrics_of_similarity(similarity, np.arange(3))


def test_wrong_groups_are_errors():
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="1 of 3 images have no text, the first is image 1"):
        image_text_metrics(vectors, vectors, [0, 2, 2])
    with pytest.raises(UserError, match="is the split empty"):
        image_text_metrics(vectors[:0], vectors[:0], np.zeros(0, int))
    for wrong in ([0, 1], [0, 1, 3], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="text_to_image"):
            image_text_metrics(vectors, vectors, wrong)
    with pytest.raises(ValueError, match="expected"):
        image_text_metrics(vectors, vectors[:, :2], np.arange(3))
    with pytest.raises(ValueError, match="ties"):
        image_text_metrics(vectors, vectors, np.arange(3), ties="ignored")


@pytest.mark.parametrize("kind", ["plain", "collapsed"])
def test_memory_bound(kind):
    """5,000 images by 25,000 texts of a COCO test: far below the 500 MB of scores. Width 16 keeps it quick; the blocks
    of scores do not depend on it, and inputs are only ever copied in part."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5000, 16)).astype(np.float32)
    if kind == "collapsed":
        images[:] = images[0]
    texts = images[np.arange(25000) // 5] + rng.standard_normal((25000, 16)).astype(np.float32) * (kind == "plain")
    owner = np.arange(25000) // 5
    if kind == "collapsed":
        texts, owner = texts[:6000], np.arange(6000) % 5000
    tracemalloc.start()
    ranks_from_embeddings(images, texts, owner)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6


def test_golden_files():
    checks = check_folder(FIXTURES)
    assert len(checks) == len(json.loads((FIXTURES / "index.json").read_text())) > 15
    assert [check for check in checks if not check.ok] == []


def test_golden_runner_reports_what_it_cannot_check(tmp_path):
    folder = shutil.copytree(FIXTURES, tmp_path / "metrics")
    cases = [{"kind": "captioning", "case": "x"}, {"kind": "glue", "case": "gone"}, {"kind": "glue", "case": "n40"}]
    (folder / "index.json").write_text(json.dumps(cases))
    golden = json.loads((folder / "glue/n40.json").read_text())
    golden["tasks"]["binary"]["f1"] += 1e-3
    (folder / "glue/n40.json").write_text(json.dumps(golden))
    unknown, missing, wrong = check_folder(folder)
    assert not unknown.ok and unknown.case == "captioning/x: not covered"
    assert not missing.ok and "glue/gone" in missing.case
    assert not wrong.ok and wrong.worst == pytest.approx(1e-3)
    (folder / "index.json").write_text("[]")
    assert not check_folder(folder)[0].ok
