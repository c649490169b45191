"""The loss of a classification step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.errors import UserError


@dataclass
class Loss:
    """Cross-entropy between class scores and labels."""

    smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    balance: bool = False
    """Weight each class by the inverse of its number of training images: for unbalanced data."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UserError(f"--loss.smoothing {self.smoothing}: must be at least 0 and less than 1")


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weight of each class, float32 [C]: inverse frequency, scaled so that the mean over ``labels`` is 1; 0 for classes
    without images.
    """
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / counts.clamp_min(1) / (counts > 0).sum(), counts)


def class_loss(scores: Tensor, labels: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of scores [B, C] and labels [B] int64; a scalar. ``weights`` [C]: of the classes."""
    each = F.cross_entropy(scores, labels, weights, reduction="none", label_smoothing=loss.smoothing)
    # The mean over the batch, not over the weights in it: a batch of rare classes must count as such.
    return each.mean()
