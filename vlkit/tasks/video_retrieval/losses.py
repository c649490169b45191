"""The loss of text-video retrieval: symmetric cross-entropy over the pairs of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlkit.tasks.contrastive import gather_pairs, info_nce


@dataclass
class Loss:
    """Options of the loss: symmetric cross-entropy over the pairs of a batch."""

    kind: Literal["infonce", "clip4clip"] = "infonce"
    """Other sentences of the same video are left out (infonce), or counted as negatives as published (clip4clip)."""


def video_text_loss(
    videos: Tensor, texts: Tensor, groups: Tensor, scale: Tensor, options: Loss, fabric: Any = None
) -> Tensor:
    """The loss, a scalar.

    Args:
        videos, texts: [B, E], unit norm, of this process.
        groups: [B] int64; sentences of one video have the same number.
        scale: scalar factor on the cosine.
        options: which loss.
        fabric: see :func:`vlkit.tasks.contrastive.gather_pairs`.
    """
    if options.kind == "clip4clip":  # each pair is its own group
        rank = 0 if fabric is None else fabric.global_rank
        groups = torch.arange(len(groups), device=groups.device) + rank * len(groups)
    return info_nce(gather_pairs(videos, texts, groups, fabric), scale)
