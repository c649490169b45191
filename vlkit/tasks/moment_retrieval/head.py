"""Heads of R2-Tuning (arXiv:2404.00801): a pyramid over time, a class and a boundary for each of its points.

Time is measured in clips. A level of stride s has a point at 0, s, 2s, ...; a point's class says whether a moment lies
around it, its two offsets, in units of the stride, where that moment begins and ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.r2.block import Refined
from vlkit.errors import UserError

NORM_EPS = 1e-5
AtPoints = Callable[[list[int], tuple[int, ...]], Tensor]


@dataclass
class MomentOptions:
    """Options of the heads."""

    hidden: int = 256
    """Width C of the clip states."""
    strides: tuple[int, ...] = (1, 2, 4, 8)
    """Strides of the pyramid's levels in clips: ascending powers of 2, the first is 1."""
    match: bool = False
    """Begin with the similarity of each clip and the query in the base's joint space, where both towers have one: it
    enters the block and the class scores (published: without)."""

    def __post_init__(self) -> None:
        self.strides = tuple(self.strides)
        powers = all(s >= 1 and s & (s - 1) == 0 for s in self.strides)
        if not self.strides or self.strides[0] != 1 or not powers or list(self.strides) != sorted(set(self.strides)):
            raise UserError(
                f"--head.strides {list(self.strides)}: give ascending powers of 2 that begin with 1, such as 1,2,4,8"
            )
        if self.hidden < 1:
            raise UserError(f"--head.hidden {self.hidden}: must be at least 1")


class Predictions(NamedTuple):
    """What the model says about B videos, each with its query."""

    logits: Tensor
    """[B, N], class of each point, level after level."""
    offsets: Tensor | None
    """[B, N, 2], from the point back to the start and on to the end, in strides; None without a boundary head."""
    points: Tensor
    """[N, 4]: place in clips, both ends of the range of its level, stride."""
    valid: Tensor
    """[B, N] bool, True = the point covers a real clip."""
    frames: Tensor
    """[B, T, C], the states of the clips, not negative."""
    pooled: Tensor
    """[B, C], the pooled query."""
    clips: Tensor
    """[k, B, T, C], see :class:`vlkit.adapters.r2.block.Refined`."""
    queries: Tensor
    """[k, B, C], the pooled query of each step."""
    mask: Tensor
    """[B, T] bool, True = real clip."""


class MomentHeads(nn.Module):
    """Pyramid, query pooling, class head and boundary head.

    Args:
        options: see :class:`MomentOptions`.
        boundaries: False for highlight sets without moments: no boundary head.
    """

    def __init__(self, options: MomentOptions, boundaries: bool = True) -> None:
        super().__init__()
        width, self.strides = options.hidden, tuple(options.strides)
        self.pyramid = Pyramid(width, self.strides)
        self.pooling = QueryPooling(width)
        self.classes = ConvHead(width, 1)
        self.boundaries = ConvHead(width, 2) if boundaries else None
        self.coefficients = nn.Parameter(torch.ones(len(self.strides))) if boundaries else None

    def forward(
        self, refined: Refined, video_mask: Tensor, query_mask: Tensor, start: AtPoints | None = None
    ) -> Predictions:
        """Predictions for refined clips.

        Args:
            refined: states of clips and query.
            video_mask, query_mask: bool [B, T] and [B, L], True = real.
            start: (points of each level, their strides) -> [B, N], added to the class logits.
        """
        with torch.autocast(refined.frames.device.type, enabled=False):
            frames, clips, query, queries = (
                _at_least_float(x) for x in (refined.frames, refined.clips, refined.query, refined.queries)
            )
            x = frames.relu()  # published: the state itself is rectified, so the saliency reads this too
            levels = self.pyramid(x, video_mask)
            logits = torch.cat([self.classes(level).squeeze(2) for level, _ in levels], dim=1)
            if start is not None:
                logits = logits + start([level.shape[1] for level, _ in levels], self.strides)
            offsets = None
            if self.boundaries is not None and self.coefficients is not None:
                found = (
                    self.boundaries(level).exp() * c for (level, _), c in zip(levels, self.coefficients, strict=False)
                )
                offsets = torch.cat(list(found), dim=1)
            pooled = torch.stack([self.pooling(own, query_mask) for own in queries])
            return Predictions(
                logits,
                offsets,
                points_of([level.shape[1] for level, _ in levels], self.strides).to(x),
                torch.cat([valid for _, valid in levels], dim=1),
                x,
                self.pooling(query, query_mask),
                clips,
                pooled,
                video_mask,
            )


def _at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


class Pyramid(nn.Module):
    """Levels of growing stride: level s halves the clips log2(s) times, each time by a convolution, a norm and a ReLU.

    Args:
        width: C.
        strides: powers of 2.
    """

    def __init__(self, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.levels = nn.ModuleList(
            nn.ModuleList(Halving(width) for _ in range(int(math.log2(stride)))) for stride in strides
        )

    def forward(self, x: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """States [B, T, C] and mask bool [B, T] -> for each level states [B, n, C] and mask bool [B, n].

        A level whose stride is larger than T is left out. A point is valid if any of its clips is real.
        """
        found = []
        for stride, steps in zip(self.strides, self.levels, strict=True):
            if stride > x.shape[1]:
                break
            level = x
            for step in cast(nn.ModuleList, steps):
                level = step(level)
            found.append((level, F.max_pool1d(mask.float().unsqueeze(1), stride).squeeze(1) > 0))
        return found


class Halving(nn.Module):
    """Convolution of kernel and stride 2 over time, layer norm, ReLU.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(width, width, 2, 2), nn.LayerNorm(width, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T // 2, C]."""
        return self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)).relu()


class QueryPooling(nn.Module):
    """Attention pooling over the real tokens of a query.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, query: Tensor, mask: Tensor) -> Tensor:
        """[B, L, C] and mask bool [B, L] -> [B, C]."""
        weights = self.score(query).masked_fill(~mask.unsqueeze(2), -torch.inf).softmax(dim=1)
        return (weights * query).sum(1)


class ConvHead(nn.Module):
    """Two convolutions of kernel 3 over time with a ReLU between them. Padded clips are not masked (as published).

    Args:
        width: C.
        out: output channels.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, out]."""
        return self.second(self.first(x.transpose(1, 2)).relu()).transpose(1, 2)


def points_of(lengths: Sequence[int], strides: Sequence[int]) -> Tensor:
    """The points of all levels, float64 [N, 4]: place, range of the larger offset in clips, both ends included, stride.

    Args:
        lengths: points of each level; levels at the end may be missing.
        strides: stride of each level.
    """
    rows = []
    for number, length in enumerate(lengths):
        low = 0.0 if number == 0 else float(strides[number])
        high = math.inf if number == len(strides) - 1 else float(strides[number + 1])
        rows += [[place * strides[number], low, high, strides[number]] for place in range(length)]
    return torch.tensor(rows, dtype=torch.float64)
