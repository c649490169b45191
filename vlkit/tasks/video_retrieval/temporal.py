"""From frame embeddings to a video embedding: the three similarity calculators of CLIP4Clip (arXiv:2104.08860).

``mean`` (there ``meanP``) has no parameters. ``lstm`` (``seqLSTM``) and ``transformer`` (``seqTransf``) first model the
sequence of frames, add the result to the frames (residual) and then average as ``mean`` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.errors import UserError

NORM_EPS = 1e-6
"""Smallest divisor for normalisation: shorter vectors are divided by this (as published)."""
MAX_FRAMES = 128
"""Number of position embeddings, so the most frames."""
HEAD_WIDTH = 64
INIT_STD = 0.02

TemporalKind = Literal["mean", "lstm", "transformer"]
Init = Literal["identity", "published"]


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


def temporal_head(kind: TemporalKind, width: int, layers: int | None = None, init: Init = "identity") -> nn.Module:
    """The head for frame embeddings of ``width`` E: called with [B, T, E] and the mask [B, T], gives [B, E].

    Args:
        layers: layers of lstm (default 1) and transformer (default 4), as published.
        init: ``identity``: starts exactly as the mean; ``published``: random (PyTorch's own, and N(0, 0.02)).
    """
    if kind == "lstm":
        return LstmFrames(width, layers or 1, init)
    if kind == "transformer":
        return TransformerFrames(width, layers or 4, init)
    return MeanFrames()


class MeanFrames(nn.Module):
    """:func:`mean_frames` as a module."""

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """[B, T, E], bool [B, T] -> [B, E], unit norm."""
        return mean_frames(frames, mask)


class LstmFrames(nn.Module):
    """CLIP4Clip ``seqLSTM``: a one-directional LSTM over the frames, its output added to them, then the mean.

    It reads frames before normalisation. State runs forward only, so padding after the last real frame does not change
    real frames and needs no packing.

    Args:
        width: E.
        layers: stacked LSTM layers.
        init: ``identity`` starts the cell candidates of the last layer at 0: its output is 0, so the head is the mean.
    """

    def __init__(self, width: int, layers: int = 1, init: Init = "identity") -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        if init == "identity":
            with torch.no_grad():
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    # Gates come in the order input, forget, candidate, output. A zero candidate leaves the cell empty.
                    getattr(self.lstm, f"{name}_l{layers - 1}")[2 * width : 3 * width].zero_()

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """[B, T, E], bool [B, T] with the real frames first -> [B, E], unit norm."""
        return mean_frames(frames + self.lstm(frames)[0], mask)


class TransformerFrames(nn.Module):
    """CLIP4Clip ``seqTransf``: frames plus position embeddings through pre-norm blocks, added to the frames, the mean.

    As published: QuickGELU, four times the width inside, heads of width 64, no dropout, layer norm with eps 1e-12.
    (Published weights start as copies of CLIP's text blocks and positions, where available.)

    Args:
        width: E.
        layers: blocks.
        init: ``identity`` starts positions and the output projections of every block at 0: each frame is doubled, so
            the head is the mean. Otherwise weights are drawn from N(0, 0.02), biases are 0.
    """

    def __init__(self, width: int, layers: int = 4, init: Init = "identity") -> None:
        super().__init__()
        heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.positions = nn.Embedding(MAX_FRAMES, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, quick_gelu, layer_norm_eps=1e-12, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if init == "identity":
            nn.init.zeros_(self.positions.weight)
            for block in cast("Iterable[Any]", self.blocks):
                nn.init.zeros_(block.self_attn.out_proj.weight)
                nn.init.zeros_(block.linear2.weight)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """[B, T, E] with T <= 128, bool [B, T] -> [B, E], unit norm."""
        if frames.shape[1] > MAX_FRAMES:
            raise UserError(f"--frames: {frames.shape[1]} frames; the transformer head has positions for {MAX_FRAMES}")
        hidden = frames + self.positions.weight[: frames.shape[1]]
        padding = ~mask
        # Attention over no frame is NaN: a video without real frames attends to its first frame (its result is zero).
        padding[:, 0] = False
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=padding)
        return mean_frames(frames + hidden, mask)


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, the activation of CLIP."""
    return x * torch.sigmoid(1.702 * x)
