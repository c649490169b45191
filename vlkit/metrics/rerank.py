"""Re-ranking of text-video scores against hubs: candidates that are close to every query.

Both methods change the protocol. Dual softmax uses all test queries at once, which a search engine that answers one
query at a time cannot do; query-bank normalisation uses training queries only. T sentences, V videos.
"""

from __future__ import annotations

import numpy as np

from vlkit.errors import UserError
from vlkit.metrics.video import multi_sentence_metrics, single_sentence_metrics

DUAL_SCALE = 100.0
"""Factor on the cosine inside the softmax of dual softmax: CLIP's own logit scale, as published."""
BANK_SCALE = 20.0
"""Inverse temperature of query-bank normalisation, as published."""


def dual_softmax(similarity: np.ndarray, scale: float = DUAL_SCALE) -> np.ndarray:
    """Scores times each candidate's softmax over all queries (CAMoE, arXiv:2109.04290).

    Args:
        similarity: float [Q, C], row = query, column = candidate, cosine.
        scale: on the cosine, inside the softmax.

    Returns:
        float64 [Q, C].
    """
    logits = scale * similarity.astype(np.float64)
    return logits * _softmax_over_rows(logits)


def query_bank(similarity: np.ndarray, bank: np.ndarray, scale: float = BANK_SCALE) -> np.ndarray:
    """Query-bank normalisation with dynamic inverted softmax (Bogolin et al., CVPR 2022).

    Scores of a query whose best candidate is also the best of some bank query are divided by the candidates' sums over
    the bank; those of all other queries stay as they are.

    Args:
        similarity: float [Q, C], row = query, column = candidate, cosine.
        bank: float [K, C], the bank's queries against the same candidates.
        scale: inverse temperature.

    Returns:
        float64 [Q, C]; only scores of the same row are comparable.
    """
    logits, bank = scale * similarity.astype(np.float64), scale * bank.astype(np.float64)
    hubs = np.unique(bank.argmax(1))
    top = bank.max(0)
    log_sums = top + np.log(np.exp(bank - top).sum(0))  # [C]
    # In logarithms, which keep the order of each row and do not overflow.
    return np.where(np.isin(logits.argmax(1), hubs)[:, None], logits - log_sums, logits)


def reranked_metrics(text_to_video: np.ndarray, video_to_text: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Metrics when each direction has its own scores.

    Args:
        text_to_video: float [T, V], row = sentence as a query.
        video_to_text: float [V, T], row = video as a query.
        owner: int [T], the video of each sentence, sentences in the order of their videos.

    Returns:
        The keys of :func:`vlkit.metrics.video.single_sentence_metrics` or, if videos have several sentences, of
        :func:`vlkit.metrics.video.multi_sentence_metrics`.
    """
    sentences, videos = text_to_video.shape
    if video_to_text.shape != (videos, sentences):
        raise ValueError(f"video_to_text has shape {video_to_text.shape}, expected {(videos, sentences)}")
    if not sentences:
        raise UserError("nothing to rank: no sentences; is the split empty?")

    def measured(similarity: np.ndarray) -> dict[str, float]:
        if sentences == videos:
            return single_sentence_metrics(similarity)
        return multi_sentence_metrics(similarity, owner)

    forward, backward = measured(text_to_video), measured(video_to_text.T)
    metrics = {key: (backward if key.startswith("v2t") else forward)[key] for key in forward if key != "rsum"}
    recalls = (metrics[f"{direction}_r{k}"] for direction in ("t2v", "v2t") for k in (1, 5, 10))
    return metrics | {"rsum": sum(recalls)}


def _softmax_over_rows(logits: np.ndarray) -> np.ndarray:
    """Each column's softmax over the rows."""
    shares = np.exp(logits - logits.max(0))
    return shares / shares.sum(0)
