"""What the two towers say about clip and query together: their similarity in the base's joint space, as a start.

A contrastive base can already tell which frames show what a sentence names. Blocks with new weights would have to learn
that again, from a few hundred sentences; with it they learn where a moment begins and ends. The published heads do
without. The idea is ours, as ``--fusion.match`` of visual question answering and grounding is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 3
SCALE = 10.0
"""Factor on raw cosines, which differ by a tenth or two between clips."""
LEAST_SPREAD = 0.01
"""Cosines of a video that differ by less say nothing about its clips."""


class QueryMatch(nn.Module):
    """Similarities of clips and query as a state for the block, and as a start of the points' class scores.

    Args:
        width: C, width of the clip states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_state = nn.Sequential(nn.Conv1d(FEATURES, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 1))
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, clips: Tensor, query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, E] and [B, E] of the joint space, mask bool [B, T] -> states [B, T, C] and the similarity
        of each clip [B, T] float32 in standard deviations of its video; 0 at padded clips.
        """
        cosine = (F.normalize(clips.float(), dim=-1) @ F.normalize(query.float(), dim=-1).unsqueeze(2)).squeeze(2)
        count = mask.sum(1, keepdim=True).clamp_min(1)
        centred = (cosine - (cosine * mask).sum(1, keepdim=True) / count) * mask
        spread = (centred.square().sum(1, keepdim=True) / count).sqrt().clamp_min(LEAST_SPREAD)
        standard = centred / spread
        best = (centred - centred.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)) * mask
        features = torch.stack([standard, SCALE * cosine * mask, SCALE * best], dim=1)  # [B, 3, T]
        return self.to_state(features.to(self.gain.dtype)).transpose(1, 2) * mask.unsqueeze(2), standard

    def at_points(self, standard: Tensor, lengths: list[int], strides: tuple[int, ...]) -> Tensor:
        """Similarities [B, T] of clips at the points of a pyramid, the mean over each stride, times a gain: [B, N]."""
        levels = [
            F.avg_pool1d(standard.unsqueeze(1), stride).squeeze(1)[:, :length] if stride > 1 else standard
            for length, stride in zip(lengths, strides, strict=False)
        ]
        return self.gain * torch.cat(levels, dim=1)
