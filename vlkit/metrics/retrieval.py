"""Image-text retrieval metrics (COCO, Flickr30K): recall at 1, 5, 10 in both directions, and their sum.

Recalls are percent of queries whose best positive has fewer than k candidates before it. ``i2t`` ranks all texts for
one query per image (any of its own texts counts), ``t2i`` all images for one query per text. Ties count against the
query by default, so a model that scores everything alike gets 0, not 100. N images, M texts, D embedding width.
"""

from __future__ import annotations

import math

import numpy as np

from vlkit.metrics.embedding_ranks import ranks_from_embeddings
from vlkit.metrics.ranks import Array, RetrievalRanks, Ties, as_array, ranks_from_similarity

RECALL_AT = (1, 5, 10)


def image_text_metrics(
    image_embeddings: Array, text_embeddings: Array, text_to_image: Array | list[int], ties: Ties = "pessimistic"
) -> dict[str, float]:
    """Metrics of embeddings compared by dot product; see :func:`metrics_of_ranks` for the keys.

    Args:
        image_embeddings: [N, D] floating, on the CPU, unit norm for cosine similarity.
        text_embeddings: [M, D], as above.
        text_to_image: int [M], the image of each text; any number of texts per image. The COCO and Flickr30K protocols
            use the first five texts of an image, which the caller selects.
        ties: "pessimistic" (tied candidates come before the positive) or "optimistic" (after it).
    """
    return metrics_of_ranks(ranks_from_embeddings(image_embeddings, text_embeddings, text_to_image, ties))


def image_text_metrics_of_similarity(
    similarity: Array, text_to_image: Array | list[int], ties: Ties = "pessimistic"
) -> dict[str, float]:
    """Metrics of a [N, M] similarity matrix, larger is more similar; else as :func:`image_text_metrics`."""
    return metrics_of_ranks(ranks_from_similarity(similarity, text_to_image, ties))


def fold_metrics(
    image_embeddings: Array,
    text_embeddings: Array,
    text_to_image: Array | list[int],
    folds: int = 5,
    ties: Ties = "pessimistic",
) -> dict[str, float]:
    """Mean of every figure over consecutive folds of images, each ranked among its own candidates only.

    The "COCO 1K" protocol is the 5,000 test images in the order of the Karpathy file in 5 folds of 1,000.

    Raises:
        ValueError: the images do not divide into equal folds.
    """
    images, texts, owner = as_array(image_embeddings), as_array(text_embeddings), as_array(text_to_image)
    size, rest = divmod(len(images), folds)
    if rest or not size:
        raise ValueError(f"{len(images)} images do not divide into {folds} equal folds")
    results = []
    for start in range(0, len(images), size):
        inside = (owner >= start) & (owner < start + size)
        fold = image_text_metrics(images[start : start + size], texts[inside], owner[inside] - start, ties)
        results.append(fold)
    return {key: float(np.mean([result[key] for result in results])) for key in results[0]}


def metrics_of_ranks(ranks: RetrievalRanks) -> dict[str, float]:
    """Figures of zero-based ranks.

    Returns, for each direction ``i2t`` and ``t2i``: ``_r1``, ``_r5``, ``_r10`` (percent); ``_mean_recall``, the mean of
    the three; ``_median_rank`` = floor(median) + 1 and ``_mean_rank`` = mean + 1; ``_tied``, percent of queries whose
    best positive ties with another candidate (near 0 unless the model collapsed). And ``rsum``, the six recalls
    summed, at most 600.
    """
    metrics: dict[str, float] = {}
    for direction, rank, tied in (("i2t", ranks.i2t, ranks.i2t_tied), ("t2i", ranks.t2i, ranks.t2i_tied)):
        recalls = recall_percent(rank)
        metrics |= {f"{direction}_r{k}": value for k, value in zip(RECALL_AT, recalls, strict=True)}
        metrics[f"{direction}_mean_recall"] = sum(recalls) / len(recalls)
        metrics[f"{direction}_median_rank"] = float(math.floor(np.median(rank)) + 1)
        metrics[f"{direction}_mean_rank"] = float(np.mean(rank)) + 1
        metrics[f"{direction}_tied"] = tied_percent(tied)
    metrics["rsum"] = sum(metrics[f"{direction}_r{k}"] for direction in ("i2t", "t2i") for k in RECALL_AT)
    return metrics


def recall_percent(ranks: np.ndarray) -> list[float]:
    """Percent of zero-based ranks below 1, 5 and 10."""
    return [100 * float(np.count_nonzero(ranks < k)) / len(ranks) for k in RECALL_AT]


def tied_percent(tied: np.ndarray) -> float:
    """Percent of queries with at least one tied candidate."""
    return 100 * float(np.count_nonzero(tied)) / len(tied)
