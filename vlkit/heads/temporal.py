"""From frame embeddings to a video embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6
"""Shorter vectors are divided by this instead of their norm (as published)."""


def mean_frames(frames: Tensor, mask: Tensor) -> Tensor:
    """Parameter-free video embedding (CLIP4Clip ``meanP``): normalise frames, average the real ones, normalise again.

    Args:
        frames: [B, T, E] float.
        mask: [B, T] bool, True = real frame; a video without real frames gives a zero vector.

    Returns:
        [B, E], unit norm.
    """
    weights = mask.unsqueeze(-1).to(frames.dtype)
    mean = (F.normalize(frames, dim=-1, eps=NORM_EPS) * weights).sum(1) / weights.sum(1).clamp_min(1)
    return F.normalize(mean, dim=-1, eps=NORM_EPS)
