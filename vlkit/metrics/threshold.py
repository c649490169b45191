"""The similarity that best separates matching from other pairs of an image and a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MOST_TEXTS, BLOCK = 5_000, 256


def best_f1_threshold(images: ArrayLike, texts: ArrayLike, text_to_image: ArrayLike) -> dict[str, float]:
    """The threshold on the inner product with the best F1 of "this image matches this text", over all pairs.

    Exact, in memory linear in the numbers of images and texts. More than :data:`MOST_TEXTS` texts are sampled evenly.
    The threshold depends on the number of images: among more images, more pairs match by accident.

    Args:
        images: [N, D] floating, unit norm for a threshold on the cosine scale.
        texts: [M, D], as above, at least one.
        text_to_image: int [M], the image of each text.

    Returns:
        ``min_score``, rounded down to 4 digits, and ``f1``, ``precision`` and ``recall`` at it (percent).
    """
    images, texts = np.asarray(images, np.float32), np.asarray(texts, np.float32)
    owner = np.asarray(text_to_image)
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), MOST_TEXTS)).round().astype(int))
    texts, owner = texts[chosen], owner[chosen]
    # Candidates: the scores of matching pairs, as a search would round them. Between two of them F1 only falls.
    matching = np.sort(np.floor(np.einsum("md,md->m", texts, images[owner]).astype(np.float64) * 1e4) / 1e4)
    above = np.zeros(len(matching) + 1, np.int64)  # above[i]: pairs with a score of candidates i-1 ... i
    for start in range(0, len(texts), BLOCK):
        scores = (texts[start : start + BLOCK] @ images.T).astype(np.float64).ravel()
        above += np.bincount(np.searchsorted(matching, scores, "right"), minlength=len(above))
    found = above[::-1].cumsum()[::-1][1:]  # pairs with at least the score of candidate i
    right = len(matching) - np.searchsorted(matching, matching, "left")
    precision, recall = right / np.maximum(found, right), right / len(matching)
    f1 = 2 * precision * recall / (precision + recall)
    best = int(f1.argmax())
    return {
        "min_score": float(matching[best]),
        **{
            name: 100 * float(value[best]) for name, value in (("f1", f1), ("precision", precision), ("recall", recall))
        },
    }
