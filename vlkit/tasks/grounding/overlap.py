"""Differentiable overlap of boxes without device synchronisation. Metrics have their own version in numpy."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-7
"""Smallest area used as a divisor."""


def pairwise_iou(left: Tensor, right: Tensor) -> Tensor:
    """IoU of boxes [..., 4] (corners), row by row or broadcast: [...]."""
    shared, union = _shared_and_union(left, right)
    return shared / union


def pairwise_giou(left: Tensor, right: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of boxes [..., 4] (corners), row by row or broadcast: [...].

    torchvision's version reads values from the device, which makes a training step wait.
    """
    shared, union = _shared_and_union(left, right)
    low, high = torch.minimum(left[..., :2], right[..., :2]), torch.maximum(left[..., 2:], right[..., 2:])
    hull = (high - low).prod(-1).clamp_min(_TINY)
    return shared / union - (hull - union) / hull


def _shared_and_union(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(left[..., :2], right[..., :2]), torch.minimum(left[..., 2:], right[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (left, right)]
    return shared, (areas[0] + areas[1] - shared).clamp_min(_TINY)
