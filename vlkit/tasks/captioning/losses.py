"""The loss of a written caption."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def caption_loss(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    """Cross-entropy of the captions' tokens: mean over each caption's tokens, then over the captions (CLIP-T5).

    Args:
        logits: [B, T, V].
        targets: [B, T] int64, end token included.
        pad_id: id of the padding, which is not counted.
    """
    found = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=pad_id, reduction="none")
    return (found.sum(1) / (targets != pad_id).sum(1).clamp_min(1)).mean()
