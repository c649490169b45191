"""UniPT on the pooled embedding (published for CLIP towers)."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.hooks import Adapter
from vlkit.adapters.sherl.blocks import LinearHead
from vlkit.adapters.unipt.blocks import masked_mean
from vlkit.encoders.staged import Stream

CLAMP = 1e-6


class PooledUniptAdapter(Adapter):
    """UniPT on the pooled embedding (published for CLIP towers): attention-pooled taps refine it in the joint space.

    The anchor is the reduced pooled embedding, a single query. Reduced tokens ``W x + c`` (x = relu(tap)) are never
    computed: their scores, weighted sum and mean follow from those of x with one product with W, so each tap is saved
    for backward only once. The result equals the published one.

    Args:
        widths: channels of each tap; every tap is a candidate.
        out_dim: E.
        hidden: H.
        layers: depths of the taps.
        init: ``"identity"`` zeroes the output projection: training starts exactly at the base's embedding.
    """

    handoff = "pooled"
    late = 0

    def __init__(
        self,
        widths: tuple[int, ...],
        out_dim: int,
        hidden: int,
        layers: tuple[int, ...],
        init: Literal["published", "identity"] = "published",
    ) -> None:
        super().__init__()
        if len(widths) != len(layers) or not layers:
            raise ValueError(f"one width for each tap is needed, got {len(widths)} widths and taps {list(layers)}")
        self.layers = tuple(layers)
        self.reducers = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.anchor_reducer = nn.Linear(out_dim, hidden)
        self.confidence = nn.Linear(hidden, 1)
        self.head = LinearHead(hidden, out_dim)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """``relu(tap)`` as [B, L, D]; neither forward nor backward needs the tap itself."""
        x = F.relu(tap.hidden)
        return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, E]: ``last`` plus the merged layers; ``reduced`` are K tensors [B, L, D_k]."""
        anchor = self.anchor_reducer(F.relu(last))  # [B, H]
        pairs = [self._interact(i, x, anchor, stream) for i, x in enumerate(reduced)]
        confidence = torch.cat([self.confidence(anchor * mean) for _, mean in pairs], dim=1)
        shares = confidence.softmax(1)  # [B, K]
        merged = torch.einsum("bk,bkh->bh", shares, torch.stack([z for z, _ in pairs], dim=1))
        return last + self.head(merged)

    def _interact(self, index: int, x: Tensor, anchor: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """Attention output of the anchor in one layer plus the base token, and the layer's mean; both [B, H]."""
        reducer = cast(nn.Linear, self.reducers[index])
        mask = stream.mask if stream.mask is not None and x.shape[1] == stream.mask.shape[1] else None
        scores = torch.einsum("bld,bd->bl", x, anchor @ reducer.weight) + (anchor @ reducer.bias).unsqueeze(1)
        if mask is not None:
            scores = scores * mask
        scores = F.relu(scores)
        weights = scores / scores.sum(1, keepdim=True).clamp_min(CLAMP)
        found = torch.einsum("bl,bld->bd", weights, x) + self._base(x, stream, mask)
        share = weights.sum(1, keepdim=True) + 1
        return found @ reducer.weight.T + share * reducer.bias, reducer(masked_mean(x, mask))

    @staticmethod
    def _base(x: Tensor, stream: Stream, mask: Tensor | None) -> Tensor:
        """The base token of the sequence, [B, D]: the tower's summary token, or the mean."""
        if stream.summary is not None:
            return x[torch.arange(x.shape[0], device=x.device), stream.summary]
        return masked_mean(x, mask)
