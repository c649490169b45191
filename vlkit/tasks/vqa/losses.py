"""Losses of visual question answering: for a classifier over a vocabulary, and for a decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def answer_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with soft targets, summed over the answers and averaged over the questions.

    Args:
        logits: [B, A].
        targets: [B, A] in 0..1 (:func:`vlkit.metrics.vqa.soft_target`); a row of zeros is a valid example.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def answer_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the soft targets normalised to sum to 1, averaged over the questions that have targets.

    Args:
        logits: [B, A].
        targets: [B, A] in 0..1; a row of zeros is ignored.
    """
    total = targets.sum(1)
    per_question = -(targets * logits.log_softmax(1)).sum(1) / total.clamp_min(1e-6)
    return per_question.sum() / (total > 0).sum().clamp_min(1)
