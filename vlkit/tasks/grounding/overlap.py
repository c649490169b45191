"""Overlap of boxes as tensors, differentiable and without waiting for the device. Metrics have their own, in numpy."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-7
"""Least area that is divided by."""


def pairwise_iou(left: Tensor, right: Tensor) -> Tensor:
    """IoU of boxes [..., 4] (corners), row by row or broadcast: [...]."""
    shared, union = _shared_and_union(left, right)
    return shared / union


def pairwise_giou(left: Tensor, right: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of boxes [..., 4] (corners), row by row or broadcast: [...].

    torchvision's own asks the device for values, which stops a training step until it has answered.
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
