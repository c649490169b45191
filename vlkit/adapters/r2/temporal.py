"""The temporal layer of R2-Tuning (arXiv:2404.00801): clips attend to the query, then to each other.

    x = LN(x + DP(attention(x + PE | q, q, query mask)))
    x = LN(x + DP(attention(x + PE | x + PE, x, video mask)))
    x = LN(x + DP(W2 relu(W1 x + b1) + b2))

PE is a sinusoid code of the clip's place in the video; it is added to queries and keys only. DP is drop path.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Positions = Literal["padded", "own"]
"""What a clip's place is divided by: the padded length of the batch (published), or the video's own length."""
NORM_EPS = 1e-5


class TemporalLayer(nn.Module):
    """Cross-attention, self-attention and feed-forward over the clips of a video.

    Args:
        width: C.
        heads: attention heads; divides C.
        ratio: width of the feed-forward part over C.
        drop_path: probability that a residual branch of a sample is dropped in training.
        positions: see :data:`Positions`.
    """

    def __init__(
        self, width: int, heads: int = 8, ratio: int = 4, drop_path: float = 0.1, positions: Positions = "padded"
    ) -> None:
        super().__init__()
        self.positions: Positions = positions
        self.cross, self.itself = Attention(width, heads), Attention(width, heads)
        self.cross_norm, self.itself_norm, self.inner_norm = (nn.LayerNorm(width, NORM_EPS) for _ in range(3))
        self.inner = nn.Sequential(nn.Linear(width, ratio * width), nn.ReLU(), nn.Linear(ratio * width, width))
        for layer in (self.inner[0], self.inner[2]):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor, query: Tensor, video_mask: Tensor, query_mask: Tensor) -> Tensor:
        """Clips [B, T, C] and query tokens [B, L, C] with masks bool [B, T], [B, L] (True = real) -> [B, T, C].

        Each sample needs at least one real clip and one real token.
        """
        code = position_code(video_mask, x.shape[-1], self.positions).to(x.dtype)
        x = self.cross_norm(x + self.drop(self.cross(x + code, query, query, query_mask)))
        x = self.itself_norm(x + self.drop(self.itself(x + code, x + code, x, video_mask)))
        return self.inner_norm(x + self.drop(self.inner(x)))


class Attention(nn.Module):
    """Multi-head attention with four separate linear maps; masked keys get weight 0.

    Args:
        width: C.
        heads: divides C.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide by {heads} heads")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """[B, T, C] asks [B, L, C]; ``mask`` bool [B, L], True = real key -> [B, T, C]."""
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        asked, keys, values = split(self.query(query)), split(self.key(key)), split(self.value(value))
        mixed = scaled_dot_product_attention(asked, keys, values, attn_mask=mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


class DropPath(nn.Module):
    """Drop a residual branch of whole samples in training; the others are scaled up.

    Args:
        probability: of dropping, 0 ... below 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; the first dimension counts samples."""
        if not self.training or self.probability == 0:
            return x
        kept = 1 - self.probability
        return x * torch.bernoulli(x.new_full((len(x), *[1] * (x.ndim - 1)), kept)) / kept


def position_code(mask: Tensor, width: int, positions: Positions = "padded") -> Tensor:
    """Sinusoid code of each clip's place: mask bool [B, T] -> [B, T, C] in float64.

    Clip t (from 1) of T is at ``t / (T + 1e-6) * 2 pi``; channel j has the frequency
    ``10000 ** (-2 floor(j / 2) / C)``, even channels the sine, odd ones the cosine. Padded clips count like real ones.
    """
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.float64)
    length = mask.sum(1) if positions == "own" else mask.new_full((len(mask),), 1, dtype=torch.int64) * mask.shape[1]
    place = steps / (length.double().unsqueeze(1) + 1e-6) * 2 * math.pi
    channel = torch.arange(width, device=mask.device)
    angle = place.unsqueeze(2) / 10000 ** (2 * (channel // 2).double() / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())
