"""The loss of a classified or rated text; that of a written label is :func:`vlkit.tasks.generation.token_loss`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def label_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of classes, or mean squared error of numbers.

    Args:
        outputs: [B, C] logits, or [B, 1] numbers.
        targets: [B] int64 classes, or [B] float numbers.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs.squeeze(1), targets)
    return F.cross_entropy(outputs, targets)
