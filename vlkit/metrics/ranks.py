"""Ranks of retrieval queries from a similarity matrix.

The rank of a query is the number of candidates placed before its best positive, zero-based. No scores are sorted: one
comparison and one sum per candidate give the rank. N images (or videos), M texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vlkit.errors import UserError

Ties = Literal["pessimistic", "optimistic"]
Array = np.ndarray | torch.Tensor

# Rows compared at once: keeps the masks of a 5,000 x 25,000 matrix near 10 MB.
BLOCK_ROWS = 128


@dataclass(frozen=True)
class RetrievalRanks:
    """Zero-based ranks of every query in both directions, and how many candidates tie with the best positive.

    Attributes:
        i2t: int64 [N], per image the texts of other images placed before the best of its own texts.
        t2i: int64 [M], per text the other images placed before its own.
        i2t_tied: int64 [N], per image the texts of other images that score exactly like the best of its own.
        t2i_tied: int64 [M], per text the other images that score exactly like its own.
    """

    i2t: np.ndarray
    t2i: np.ndarray
    i2t_tied: np.ndarray
    t2i_tied: np.ndarray

    @classmethod
    def from_counts(
        cls, i2t: np.ndarray, t2i: np.ndarray, i2t_tied: np.ndarray, t2i_tied: np.ndarray, ties: Ties
    ) -> RetrievalRanks:
        """Ranks from the candidates strictly above the best positive and those tied with it."""
        if ties not in ("pessimistic", "optimistic"):
            raise ValueError(f"ties is {ties!r}, expected 'pessimistic' or 'optimistic'")
        before = 1 if ties == "pessimistic" else 0
        return cls(i2t + before * i2t_tied, t2i + before * t2i_tied, i2t_tied, t2i_tied)


def ranks_from_similarity(
    similarity: Array, text_to_image: Array | list[int], ties: Ties = "pessimistic"
) -> RetrievalRanks:
    """Rank every query of a similarity matrix; scores are compared as they are, in their own dtype.

    Args:
        similarity: [N, M], larger is more similar. Any monotone transform gives the same ranks.
        text_to_image: int [M], the row each text belongs to; any number of texts per image, in any order.
        ties: "pessimistic" places every tied candidate before the positive (a collapsed model scores 0),
            "optimistic" after it. Both are independent of the order of candidates.

    Raises:
        UserError: the matrix holds NaN, or an image has no text.
        ValueError: shapes do not fit.
    """
    similarity = as_array(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {similarity.shape}, expected [images, texts]")
    images, texts = similarity.shape
    owner = check_owners(text_to_image, images, texts)
    positives = similarity[owner, np.arange(texts)]
    best = np.full(images, -np.inf, dtype=similarity.dtype)
    np.maximum.at(best, owner, positives)
    i2t, t2i, i2t_tied, t2i_tied = (np.zeros(size, dtype=np.int64) for size in (images, texts, images, texts))
    for start in range(0, images, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = similarity[rows]
        _refuse_nan(block, start)
        i2t[rows] = (block > best[rows, None]).sum(1)
        i2t_tied[rows] = (block == best[rows, None]).sum(1)
        t2i += (block > positives).sum(0)
        t2i_tied += (block == positives).sum(0)
    # A query's own positives are not candidates.
    i2t_tied -= np.bincount(owner[positives == best[owner]], minlength=images)
    t2i_tied -= 1
    return RetrievalRanks.from_counts(i2t, t2i, i2t_tied, t2i_tied, ties)


def _refuse_nan(block: np.ndarray, start: int) -> None:
    if np.isnan(block).any():
        row, column = np.argwhere(np.isnan(block))[0]
        raise UserError(f"similarity: NaN at row {start + row}, column {column}; the model's output is broken")


def check_owners(text_to_image: Array | list[int], images: int, texts: int) -> np.ndarray:
    """Check a grouping of M texts: int64 [M] with the image of each text, and at least one text per image."""
    owner = as_array(text_to_image)
    if not images or not texts:
        raise UserError(f"nothing to rank: {images} images and {texts} texts; is the split empty?")
    if owner.shape != (texts,) or not np.issubdtype(owner.dtype, np.integer):
        raise ValueError(f"text_to_image is {owner.dtype} {owner.shape}, expected integers of shape ({texts},)")
    if owner.min() < 0 or owner.max() >= images:
        raise ValueError(f"text_to_image runs from {owner.min()} to {owner.max()}; there are {images} images")
    lonely = np.flatnonzero(np.bincount(owner, minlength=images) == 0)
    if len(lonely):
        raise UserError(
            f"{len(lonely)} of {images} images have no text, the first is image {lonely[0]}; leave them out"
        )
    return owner.astype(np.int64, copy=False)


def as_array(values: Array | list[int]) -> np.ndarray:
    """A numpy view of an array or CPU tensor; bfloat16, unknown to numpy, becomes float32 (exact)."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    return np.asarray(values)
