"""Losses of visual question answering: for a classifier over a vocabulary, and for a decoder."""

from __future__ import annotations

import torch
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


def written_loss(logits: Tensor, targets: Tensor, scores: Tensor, pad_id: int) -> Tensor:
    """Cross-entropy of written answers: averaged over each answer's tokens, times its score, averaged over the
    questions (VL-T5).

    Args:
        logits: [B, T, V].
        targets: [B, T] int64, end token included.
        scores: [B] in 0..1, the soft score of each answer.
        pad_id: id of the padding.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad_id, reduction="none")
    tokens = (targets != pad_id).sum(1).clamp_min(1)
    return torch.mean(scores * losses.view_as(targets).sum(1) / tokens)
