"""Building blocks of UniPT: parallel interaction, confidence and guided pooling of grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.sherl.blocks import l1_normalise


def attend(queries: Tensor, tokens: Tensor, mask: Tensor | None, eps: float, identity: bool) -> Tensor:
    """``l1(relu(Q C^T)) C``, plus C if ``identity``: no scale, no projections (UniPT, parallel interaction).

    Args:
        queries: [B, Nq, H].
        tokens: [B, N, H].
        mask: [B, N] bool, True = real token; a padded token gets weight 0. None = all real.
        eps: added to the sum in the L1 norm.
        identity: also add each token itself with weight 1; needs Nq = N.

    Returns:
        [B, Nq, H].
    """
    weights = queries @ tokens.transpose(1, 2)  # [B, Nq, N]
    if mask is not None:
        weights = weights * mask.unsqueeze(1)
    found = l1_normalise(F.relu(weights), eps) @ tokens
    return found + tokens if identity else found


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens, [B, N, H] -> [B, H]; 0 for a row without real tokens."""
    if mask is None:
        return x.mean(1)
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1)


class ParallelMerge(nn.Module):
    """Interaction of an anchor with K candidates, weighted by confidence.

    Args:
        hidden: H.
        eps: epsilon of the L1 norm.
    """

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        # The published weights include its bias, which has no effect: softmax over candidates ignores a constant.
        self.confidence = nn.Linear(hidden, 1)
        self.eps = eps

    def forward(self, anchor: Tensor, candidates: list[Tensor], mask: Tensor | None) -> Tensor:
        """Anchor [B, N, H] and K candidates of the same shape -> [B, N, H]."""
        summary = masked_mean(anchor, mask)
        confidence = torch.cat([self.confidence(summary * masked_mean(c, mask)) for c in candidates], dim=1)
        shares = confidence.softmax(1)  # [B, K]
        merged = torch.zeros_like(anchor)
        for k, candidate in enumerate(candidates):
            merged = merged + shares[:, k, None, None] * attend(anchor, candidate, mask, self.eps, identity=True)
        return merged


class MemoryFusion(nn.Module):
    """Flavour ``mdetr``, decoder: a reduced tap attends to the side memory, ``t + LN(linear(attend(t, M)))``."""

    def __init__(self, hidden: int, eps: float = 1e-7) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.eps = eps

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """[B, Q, H] with memory [B, S, H] and its mask [B, S] bool (True = real) -> [B, Q, H]."""
        return x + self.norm(self.proj(attend(x, memory, mask, self.eps, identity=False)))


class LinearPost(nn.Module):
    """Linear and layer norm after the merge in flavour ``text``; [..., H] in and out."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class ConvEnd(nn.Module):
    """1x1 convolution on a grid, [B, N, H] -> [B, N, C], optionally with ReLU before or batch norm after."""

    def __init__(self, hidden: int, width: int, norm: bool = False, relu: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(hidden, width, kernel_size=1)
        self.norm = nn.BatchNorm2d(width) if norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = (F.relu(x) if self.relu else x).transpose(1, 2).unsqueeze(-1)
        x = self.proj(x)
        x = x if self.norm is None else self.norm(x)
        return x.squeeze(-1).transpose(1, 2)

    def zero(self) -> None:
        """Make the output exactly 0."""
        nn.init.zeros_(self.proj.weight)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)


class GuidedPool(nn.Module):
    """Reduce a grid to the size of the deepest one: each cell is a weighted sum of the q x q positions it covers.

    The weights are ``l1(relu(s)) + 1 / q^2``, where s is the product of a position with the guide from the deepest map
    at that cell, so a cell is the plain mean plus a guided mean.

    Args:
        width: C, channels of this map.
        deepest: channels of the deepest map.
        hidden: H.
        guided: False for the deepest map itself, which is not pooled.
    """

    eps = 1e-8

    def __init__(self, width: int, deepest: int, hidden: int, guided: bool = True) -> None:
        super().__init__()
        self.guide = nn.Conv2d(deepest, width, kernel_size=1) if guided else None
        self.proj = nn.Conv2d(width, hidden, kernel_size=1)
        self.norm = nn.BatchNorm2d(hidden)

    def forward(self, x: Tensor, deepest: Tensor) -> Tensor:
        """Grids [B, C, h, w] and [B, C', n, m] -> [B, n * m, H].

        Raises:
            ValueError: the sides of ``x`` are not multiples of the deepest map's sides.
        """
        if self.guide is not None:
            x = self._pool(x, deepest)
        return self.norm(self.proj(x)).flatten(2).transpose(1, 2)

    def _pool(self, x: Tensor, deepest: Tensor) -> Tensor:
        assert self.guide is not None
        (height, width), (rows, columns) = x.shape[-2:], deepest.shape[-2:]
        if height % rows or width % columns:
            raise ValueError(f"a map of {height} x {width} cannot be pooled to {rows} x {columns}; resize the images")
        q = (height // rows, width // columns)
        cells = x.unflatten(3, (columns, q[1])).unflatten(2, (rows, q[0]))  # [B, C, rows, q, columns, q]
        guide = F.relu(self.guide(deepest))[:, :, :, None, :, None]
        score = F.relu((guide * cells).sum(1))  # [B, rows, q, columns, q]
        weights = score / (score.sum((2, 4), keepdim=True) + self.eps) + 1 / (q[0] * q[1])
        return (weights.unsqueeze(1) * cells).sum((3, 5))
