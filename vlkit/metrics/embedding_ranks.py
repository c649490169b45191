"""Ranks of retrieval queries from embeddings, at about the cost of one matrix product and a few blocks of memory.

N images (or videos), M texts, D embedding width.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vlkit.errors import UserError
from vlkit.metrics.ranks import Array, RetrievalRanks, Ties, as_array, check_owners

# Bytes of scores per product, and rows counted at once: the first is large enough for a fast product, the second small
# enough for the cache and for column sums in uint8. numpy counts on one core and releases the GIL, so threads share the
# counting.
PRODUCT_BYTES = 40_000_000
COUNT_ROWS = 64
COUNT_THREADS = 4


def ranks_from_embeddings(
    image_embeddings: Array, text_embeddings: Array, text_to_image: Array | list[int], ties: Ties = "pessimistic"
) -> RetrievalRanks:
    """Rank every query by dot product of embeddings, without keeping the [N, M] score matrix.

    Scores are compared as float64 dot products of the inputs; scores that differ by no more than float64 rounding are
    tied, so duplicates tie at any position and with any block size. A float32 product decides every pair outside its
    error bound; only the rest are computed again. The cost is about one float32 product of the two matrices, with one
    block of it in memory.

    Args:
        image_embeddings: [N, D], any floating dtype, on the CPU. Unit norm for cosine similarity.
        text_embeddings: [M, D], as above.
        text_to_image: int [M], the image each text belongs to; any number of texts per image, in any order.
        ties: see :func:`vlkit.metrics.ranks.ranks_from_similarity`.

    Raises:
        UserError: an embedding is not finite, or an image has no text.
        ValueError: shapes do not fit.
    """
    images, texts = as_array(image_embeddings), as_array(text_embeddings)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"embeddings have shapes {images.shape} and {texts.shape}, expected [N, D] and [M, D]")
    owner = check_owners(text_to_image, len(images), len(texts))
    counter = _Counter(images, texts, owner)
    images32 = np.ascontiguousarray(images, dtype=np.float32)
    height = min(max(COUNT_ROWS, PRODUCT_BYTES // (4 * len(images))), len(texts))
    buffer = np.empty((height, len(images)), dtype=np.float32)
    with ThreadPoolExecutor(min(COUNT_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(texts), height):
            block = texts[start : start + height].astype(np.float32, copy=False)
            scores = np.matmul(block, images32.T, out=buffer[: len(block)])
            # A query's own positives are not candidates in either direction.
            scores[np.arange(len(block)), owner[start : start + len(block)]] = -np.inf
            offsets = range(0, len(block), COUNT_ROWS)
            parts = [scores[offset : offset + COUNT_ROWS] for offset in offsets]
            for above, tied in pool.map(counter.count, parts, [start + offset for offset in offsets]):
                counter.i2t += above
                counter.i2t_tied += tied
    return RetrievalRanks.from_counts(counter.i2t, counter.t2i, counter.i2t_tied, counter.t2i_tied, ties)


@dataclass(frozen=True)
class _Positives:
    """Thresholds for candidates, one value per query: the score of its best positive and two error bounds.

    ``best`` and ``tie`` are float64: a score within ``tie`` of ``best`` is tied. ``low`` and ``high`` are float32: a
    float32 score outside these bounds is certainly on that side of ``best``.
    """

    best: np.ndarray
    tie: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def bounded(cls, best: np.ndarray, scale: np.ndarray, width: int) -> _Positives:
        """Bounds for dot products of ``width`` terms whose norms multiply to at most ``scale``, [n] each.

        A dot product in any order of summation errs by at most D u / (1 - D u) |a| |b|, where u is half a unit in the
        last place. Four more terms cover the casts to float32, and 2 % cover the norms and the denominator.
        """
        terms = 1.02 * (width + 4)
        margin = terms * (2.0**-24 * scale + np.finfo(np.float32).tiny)
        low = np.nextafter((best - margin).astype(np.float32), np.float32(-np.inf))
        high = np.nextafter((best + margin).astype(np.float32), np.float32(np.inf))
        return cls(best, 2 * terms * 2.0**-53 * scale, low, high)


class _Counter:
    """Counts candidates above and tied with the best positive, block by block.

    Attributes: ``i2t``, ``i2t_tied`` int64 [N] and ``t2i``, ``t2i_tied`` int64 [M], the counts so far.
    """

    def __init__(self, images: np.ndarray, texts: np.ndarray, owner: np.ndarray):
        self.images, self.texts = images, texts
        image_norms, text_norms = _norms(images, "image_embeddings"), _norms(texts, "text_embeddings")
        own = _pair_scores(images, texts, owner, np.arange(len(texts)))
        best = np.full(len(images), -np.inf)
        np.maximum.at(best, owner, own)
        width = images.shape[1]
        self.of_images = _Positives.bounded(best, image_norms * text_norms.max(), width)
        self.of_texts = _Positives.bounded(own, text_norms * image_norms.max(), width)
        self.i2t, self.i2t_tied = np.zeros((2, len(images)), dtype=np.int64)
        self.t2i, self.t2i_tied = np.zeros((2, len(texts)), dtype=np.int64)

    def count(self, scores: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Count one block of float32 scores, [rows, N], of the texts from ``start``; safe to call from many threads.

        Fills the block's rows of ``t2i`` and ``t2i_tied``; returns what the block adds to ``i2t`` and ``i2t_tied``.
        """
        rows = slice(start, start + len(scores))
        near_image, above_image = _split(scores, self.of_images.low, self.of_images.high)
        near_text, above_text = _split(scores, self.of_texts.low[rows, None], self.of_texts.high[rows, None])
        i2t = above_image.sum(0, dtype=np.uint8).astype(np.int64)
        i2t_tied = np.zeros_like(i2t)
        self.t2i[rows] = above_text.sum(1, dtype=np.int32)
        either = near_image | near_text
        # Many near pairs mean a collapsed model: a dense float64 product is then cheaper than pair by pair.
        if np.count_nonzero(either) > scores.size // 50:
            exact = self.texts[rows].astype(np.float64) @ self._images64.T
            above, tied = _compare(exact, self.of_images.best, self.of_images.tie)
            i2t += (above & near_image).sum(0)
            i2t_tied += (tied & near_image).sum(0)
            above, tied = _compare(exact, self.of_texts.best[rows, None], self.of_texts.tie[rows, None])
            self.t2i[rows] += (above & near_text).sum(1)
            self.t2i_tied[rows] += (tied & near_text).sum(1)
            return i2t, i2t_tied
        pairs = np.flatnonzero(either)
        text, image = np.divmod(pairs, len(self.images))
        text += start
        exact = _pair_scores(self.images, self.texts, image, text)
        near = near_image.ravel()[pairs]
        _settle(i2t, i2t_tied, image[near], exact[near], self.of_images)
        near = near_text.ravel()[pairs]
        _settle(self.t2i, self.t2i_tied, text[near], exact[near], self.of_texts)
        return i2t, i2t_tied

    @functools.cached_property
    def _images64(self) -> np.ndarray:
        return self.images.astype(np.float64)


def _split(scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the scores between the bounds, and of those surely above them."""
    above = scores > high
    near = scores >= low
    return np.not_equal(near, above, out=near), above


def _compare(exact: np.ndarray, best: np.ndarray, tie: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the float64 scores above and tied with the best positive."""
    distance = exact - best
    return distance > tie, np.abs(distance, out=distance) <= tie


def _settle(above: np.ndarray, tied: np.ndarray, query: np.ndarray, exact: np.ndarray, positives: _Positives) -> None:
    """Count candidates by their float64 scores; ``query`` holds the query of each."""
    is_above, is_tied = _compare(exact, positives.best[query], positives.tie[query])
    np.add.at(above, query[is_above], 1)
    np.add.at(tied, query[is_tied], 1)


def _pair_scores(images: np.ndarray, texts: np.ndarray, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Float64 dot products of listed pairs, 256 at a time to stay in the cache."""
    scores = np.empty(len(image))
    for start in range(0, len(image), 256):
        part = slice(start, start + 256)
        scores[part] = np.einsum("pd,pd->p", images[image[part]], texts[text[part]], dtype=np.float64)
    return scores


def _norms(embeddings: np.ndarray, name: str) -> np.ndarray:
    """Float64 [n] norms; refuses rows that are not finite, or too large for a float32 product."""
    squares = np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64)
    wrong = np.flatnonzero(~(squares < 1e36))
    if len(wrong):
        raise UserError(
            f"{name}: {len(wrong)} of {len(embeddings)} rows are not finite numbers, the first is row {wrong[0]}; "
            "the model's output is broken (diverged training, or overflow in half precision)"
        )
    return np.sqrt(squares)
