"""What the two towers say about clip and query together: their similarity in the base's joint space, as a start.

A contrastive base can already tell which frames show what a sentence names. Blocks with new weights would have to learn
that again, from a few hundred sentences; with it they learn where a moment begins and ends. Where the base has cells in
the joint space, the cell of each frame that is nearest to the query is compared, too: the embedding of a whole frame
says little about one thing among several. The published heads do without. The idea is ours, as ``--fusion.match`` of
visual question answering and grounding is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.encoders.staged import StagedEncoder, Stream

FEATURES = 3
"""Of each view."""
SCALE = 10.0
"""Factor on raw cosines, which differ by a tenth or two between clips."""
LEAST_SPREAD = 0.01
"""Cosines of a video that differ by less say nothing about its clips."""


class QueryMatch(nn.Module):
    """Similarities of clips and query as a state for the block, and as a start of the points' class scores.

    Args:
        width: C, width of the clip states.
        views: embeddings of each clip: 1 = its frame, 2 = also the nearest cell of it.
    """

    def __init__(self, width: int, views: int = 1) -> None:
        super().__init__()
        self.views = views
        self.to_state = nn.Sequential(
            nn.Conv1d(FEATURES * views, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 1)
        )
        self.gain = nn.Parameter(torch.full((views,), 0.5 / views))

    def forward(self, views: Sequence[Tensor], query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Each view's embeddings [B, T, E] and the query's [B, E] in the joint space, mask bool [B, T] -> states
        [B, T, C] and the similarity of each clip [B, T, views] float32 in standard deviations of its video; 0 at
        padded clips.
        """
        features, standard = zip(*(_features(clips, query, mask) for clips in views), strict=True)
        states = self.to_state(torch.cat(features, dim=1).to(self.gain.dtype)).transpose(1, 2)
        return states * mask.unsqueeze(2), torch.stack(standard, dim=2)

    def at_points(self, standard: Tensor, lengths: list[int], strides: tuple[int, ...]) -> Tensor:
        """Similarities [B, T, views] of clips at the points of a pyramid, the mean over each stride, times the views'
        gains: [B, N].
        """
        similar = (standard @ self.gain.to(standard.dtype)).unsqueeze(1)
        levels = [
            F.avg_pool1d(similar, stride)[:, :, :length] if stride > 1 else similar
            for length, stride in zip(lengths, strides, strict=False)
        ]
        return torch.cat(levels, dim=2).squeeze(1)


def _features(clips: Tensor, query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[B, FEATURES, T], and the first of them [B, T]: the similarity in standard deviations of the video."""
    cosine = (F.normalize(clips.float(), dim=-1) @ F.normalize(query.float(), dim=-1).unsqueeze(2)).squeeze(2)
    count = mask.sum(1, keepdim=True).clamp_min(1)
    centred = (cosine - (cosine * mask).sum(1, keepdim=True) / count) * mask
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt().clamp_min(LEAST_SPREAD)
    standard = centred / spread
    best = (centred - centred.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)) * mask
    return torch.stack([standard, SCALE * cosine * mask, SCALE * best], dim=1), standard


@torch.no_grad()
def nearest_cells(tower: StagedEncoder, stream: Stream, queries: Tensor) -> Tensor:
    """The cell of each frame that is nearest to the frame's query, [F, E] in the joint space, without gradient.

    Args:
        tower: of images, with a joint space.
        stream: its state after the last block, of F frames.
        queries: [F, E].
    """
    cells, grid = tower.tokens(stream), tower.grid(stream)
    if grid is not None:
        cells = cells[:, -grid[0] * grid[1] :]
    joint = tower.project(cells).float()  # [F, cells, E]
    nearest = (F.normalize(joint, dim=-1) @ queries.float().unsqueeze(2)).squeeze(2).argmax(1)
    return joint[torch.arange(len(joint), device=joint.device), nearest]
