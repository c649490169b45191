"""Text-video retrieval metrics: one sentence per video (MSR-VTT 1k-A) or several (MSVD, full MSR-VTT, VATEX).

The two protocols differ in the median and in the candidates of ``v2t``; each is computed as its published numbers
were, except for ties, which count against the query (the published single-sentence code lists a tied query several
times). T sentences, V videos, D embedding width.
"""

from __future__ import annotations

import numpy as np

from vlkit.metrics.embedding_ranks import ranks_from_embeddings
from vlkit.metrics.ranks import Array, RetrievalRanks, Ties, as_array, check_owners, ranks_from_similarity
from vlkit.metrics.retrieval import RECALL_AT, recall_percent, tied_percent

# Sentences compared with all videos at once while grouping.
BLOCK_ROWS = 512


def text_video_metrics(
    video_embeddings: Array, text_embeddings: Array, text_to_video: Array | list[int], ties: Ties = "pessimistic"
) -> dict[str, float]:
    """Metrics of embeddings compared by dot product.

    The protocol follows the data: single sentence if every video has exactly one, several sentences otherwise.

    Args:
        video_embeddings: [V, D] floating, on the CPU, unit norm for cosine similarity.
        text_embeddings: [T, D], as above.
        text_to_video: int [T], the video of each sentence, in any order.
        ties: "pessimistic" (tied candidates come before the positive) or "optimistic" (after it).
    """
    videos, texts = as_array(video_embeddings), as_array(text_embeddings)
    owner = check_owners(text_to_video, len(videos), len(texts))
    ranks = ranks_from_embeddings(videos, texts, owner, ties)
    if len(videos) == len(texts):
        return _single(ranks)
    videos64 = videos.astype(np.float64)
    blocks = (
        # float64, then rounded: equal sentences get equal scores at any position in a block.
        (texts[start : start + BLOCK_ROWS].astype(np.float64) @ videos64.T).astype(np.float32)
        for start in range(0, len(texts), BLOCK_ROWS)
    )
    return _multi(ranks, _grouped(blocks, owner, len(videos)), ties)


def single_sentence_metrics(similarity: Array, ties: Ties = "pessimistic") -> dict[str, float]:
    """Metrics of a square similarity matrix, row = sentence, column = its video, positives on the diagonal.

    Returns, for ``t2v`` (rows) and ``v2t`` (columns): ``_r1``, ``_r5``, ``_r10`` (percent), ``_median_rank`` = plain
    median + 1 (can end in .5), ``_mean_rank``, ``_tied`` (percent of queries with a tie); and ``rsum``.

    Raises:
        UserError: NaN in the matrix.
        ValueError: the matrix is not square.
    """
    similarity = as_array(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity has shape {similarity.shape}, expected as many sentences as videos")
    return _single(ranks_from_similarity(similarity.T, np.arange(len(similarity)), ties))


def multi_sentence_metrics(
    similarity: Array, text_to_video: Array | list[int], ties: Ties = "pessimistic"
) -> dict[str, float]:
    """Metrics of a [T, V] similarity matrix when videos have several sentences.

    Returns:
        ``t2v_*``: one query per sentence; ``_median_rank`` is the lower median (the smaller of the middle two),
        ``_std_rank`` the population standard deviation. ``v2t_*``: one query per video, candidates are the V groups of
        sentences, a group scores as its best sentence (the number usually printed). ``v2t_sentence_*``: one query per
        video among all T sentences, any of its own counts; harder, not comparable. ``rsum`` sums ``t2v`` and ``v2t``.
        Recalls and ``_tied`` in percent.

    Raises:
        UserError: NaN in the matrix, or a video has no sentence.
        ValueError: shapes do not fit.
    """
    similarity = as_array(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {similarity.shape}, expected [sentences, videos]")
    sentences, videos = similarity.shape
    owner = check_owners(text_to_video, videos, sentences)
    ranks = ranks_from_similarity(similarity.T, owner, ties)
    blocks = (similarity[start : start + BLOCK_ROWS] for start in range(0, sentences, BLOCK_ROWS))
    return _multi(ranks, _grouped(blocks, owner, videos), ties)


def _single(ranks: RetrievalRanks) -> dict[str, float]:
    t2v = _direction("t2v", ranks.t2i, ranks.t2i_tied, np.median(ranks.t2i))
    return _with_sum(t2v | _direction("v2t", ranks.i2t, ranks.i2t_tied, np.median(ranks.i2t)))


def _multi(ranks: RetrievalRanks, grouped: np.ndarray, ties: Ties) -> dict[str, float]:
    """``ranks`` of sentences, and ``grouped`` [V, V] (row = group of sentences, column = video)."""
    lower_median = np.sort(ranks.t2i)[(len(ranks.t2i) - 1) // 2]
    metrics = _direction("t2v", ranks.t2i, ranks.t2i_tied, lower_median)
    metrics["t2v_std_rank"] = float(np.std(ranks.t2i))
    # Rows of the transpose are the video queries: each is an "image" with one "text", its own group.
    groups = ranks_from_similarity(grouped.T, np.arange(len(grouped)), ties)
    metrics |= _direction("v2t", groups.i2t, groups.i2t_tied, np.median(groups.i2t))
    metrics |= _direction("v2t_sentence", ranks.i2t, ranks.i2t_tied, np.median(ranks.i2t))
    return _with_sum(metrics)


def _grouped(blocks, owner: np.ndarray, videos: int) -> np.ndarray:
    """Best score of each video's sentences: [V, V], from blocks of rows [., V] of the [T, V] similarities."""
    grouped = None
    start = 0
    for block in blocks:
        if grouped is None:
            grouped = np.full((videos, videos), -np.inf, dtype=block.dtype)
        groups = owner[start : start + len(block)]
        start += len(block)
        order = np.argsort(groups, kind="stable")
        present, first = np.unique(groups[order], return_index=True)
        grouped[present] = np.maximum(grouped[present], np.maximum.reduceat(block[order], first, axis=0))
    assert grouped is not None  # there is a block
    return grouped


def _direction(name: str, ranks: np.ndarray, tied: np.ndarray, median: float) -> dict[str, float]:
    metrics = {f"{name}_r{k}": value for k, value in zip(RECALL_AT, recall_percent(ranks), strict=True)}
    metrics[f"{name}_median_rank"] = float(median) + 1
    metrics[f"{name}_mean_rank"] = float(np.mean(ranks)) + 1
    metrics[f"{name}_tied"] = tied_percent(tied)
    return metrics


def _with_sum(metrics: dict[str, float]) -> dict[str, float]:
    recalls = (metrics[f"{direction}_r{k}"] for direction in ("t2v", "v2t") for k in RECALL_AT)
    return metrics | {"rsum": sum(recalls)}
