"""Side attention: a light residual network beside the frozen base, after the ideas of LAST and LoSA.

Our own concretisation: neither paper (LAST, arXiv 2402.04009; LoSA, CVPR 2024, arXiv 2402.02887) has public code, and
no parity with their results is claimed. With ``z_0`` the embeddings and ``z_i`` the state after the i-th group of
blocks, all [B, N, D], and m groups:

    u_0 = 0,  u_{i+1} = F_i(u_i + z_i)   for i = 0 .. m-1
    s = u_m - sum_{i<m} z_i
    tokens = z_m + s

``F_i`` is a chain of residual layers, so ``u_m`` holds the sum of all taps; the subtraction is LAST's bias correction
and leaves what the layers add. That sum is what the code keeps (``s_{i+1} = s_i + F_i(x) - x`` with
``x = s_i + sum_{j<=i} z_j``), so ``s`` is exactly 0 before training. LAST's layer is low-rank self-attention,
LoSA's alternates between tokens and channels:

    attention: x + W_up softmax((W_q n)(W_k n)^T / sqrt r) (W_v n),  n = LN x
    mixer:     x + A_2 gelu(A_1 LN x) over the tokens, then x + B_2 gelu(B_1 LN x) over the channels
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder, Chunk, Plain, Runner
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.adapters.lean.recompute import Lean
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError
from vlkit.number_formats import NumberFormat

Layer = Callable[[Tensor, Tensor | None], Tensor]
"""(state [B, N, D], mask [B, N] or None) -> the term that the layer adds, [B, N, D]."""


class LowRankAttention(nn.Module):
    """Self-attention in ``rank`` dimensions with one head; the last map starts at 0.

    Args:
        width: D.
        rank: r.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, rank, bias=False) for _ in range(3))
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The added term, [B, N, D]; ``mask`` [B, N] bool, True = may be attended to."""
        n = self.norm(x)
        keys = None if mask is None else mask[:, None]  # the same keys for every query
        return self.up(F.scaled_dot_product_attention(self.query(n), self.key(n), self.value(n), attn_mask=keys))


class Mixer(nn.Module):
    """A low-rank mix of the tokens, then of the channels; the last maps start at 0.

    Args:
        width: D.
        rank: r.
        tokens: N; the mixer works at this length only.
    """

    def __init__(self, width: int, rank: int, tokens: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_down, self.token_up = nn.Linear(tokens, rank, bias=False), nn.Linear(rank, tokens, bias=False)
        self.channel_down, self.channel_up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.token_up.weight)
        nn.init.zeros_(self.channel_up.weight)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The added term, [B, N, D]; masks do not occur, because images have none.

        Raises:
            UserError: N differs from the number of tokens that the mixer was built for.
        """
        if x.shape[1] != self.token_down.in_features:
            raise UserError(
                f"--adapter.block mixer: {x.shape[1]} tokens, but it was built for {self.token_down.in_features}; "
                "use images of the base's own size, or --adapter.block attention"
            )
        tokens = self.token_norm(x).transpose(1, 2)
        added = self.token_up(F.gelu(self.token_down(tokens))).transpose(1, 2)
        return added + self.channel_up(F.gelu(self.channel_down(self.channel_norm(x + added))))


class SideAttentionAdapter(Adapter):
    """The side network on one tower; its output is added to the tokens after the last frozen block.

    Args:
        taps: m + 1 depths: 0, the ends of the groups but the last, and the tower's depth.
        layer: makes one side layer.
        per_group: T, layers per group; with 0 the output is that of the base.
    """

    handoff = "tokens"
    late = 0

    def __init__(self, taps: tuple[int, ...], layer: Callable[[], nn.Module], per_group: int) -> None:
        super().__init__()
        self.layers = taps[:-1]
        self.groups = nn.ModuleList(nn.ModuleList(layer() for _ in range(per_group)) for _ in self.layers)

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """The tap itself: the side state has the base's width."""
        return tap.hidden

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, N, D]: ``last`` + s."""
        added: Tensor = torch.zeros_like(last)
        total: Tensor = torch.zeros_like(last)
        for group, tap in zip(self.groups, reduced, strict=True):
            total = total + tap
            for layer in group:  # pyright: ignore[reportGeneralTypeIssues]  # a ModuleList
                added = added + layer(total + added, stream.mask)
        return last + added


@dataclass
class SideAttentionOptions(MethodOptions):
    """Side attention: low-rank attention (LAST) or mixing (LoSA) beside the base, in our concretisation."""

    kind: Literal["side_attention"] = "side_attention"
    fits_any_tower: ClassVar[bool] = False
    running: ClassVar[tuple[str, ...]] = ("lean", "early_chunk", "tap_dtype")
    block: Literal["attention", "mixer"] = "attention"
    """Side layer: attention (LAST), or mixer (LoSA), which fixes the number of tokens; texts always use attention."""
    rank: int = 8
    """Width inside a side layer (LAST: 4 to 16)."""
    gap: int = 1
    """Blocks of the base per group, each of which gets side layers."""
    depth: int = 1
    """Side layers per group."""
    lean: bool = True
    """Save only the taps and recompute the side network in backward (memory-efficient); false: plain autograd."""
    early_chunk: Chunk = "auto"
    """Samples that run through the frozen part at once; 0 = the whole batch, auto = the smallest chunk that uses the
    device fully."""
    tap_dtype: NumberFormat = "fp32"
    """Number format of the taps saved for backward. The forward is always exact; bf16 and int8 round the gradient."""

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("gap", 1), ("depth", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be at least {least}")
        if self.early_chunk != "auto" and self.early_chunk < 0:
            raise UserError(f"--adapter.early_chunk {self.early_chunk}: give 1 or more, 0 (whole batch) or auto")
        if not self.lean and (self.early_chunk != "auto" or self.tap_dtype != "fp32"):
            name = "tap_dtype" if self.early_chunk == "auto" else "early_chunk"
            raise UserError(f"--adapter.{name}: belongs to --adapter.lean true; leave one of the two out")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add the side network; both views are adapted. Training starts at the frozen base.

        Raises:
            UserError: the tower's tokens have no common width, or ``gap`` or ``block`` do not fit it.
        """
        if encoder.spatial or len(set(encoder.widths)) > 1:
            raise self.refusal(f"{encoder.kind} has no tokens of one width", "fits_any_tower")
        if self.gap > encoder.depth:
            raise UserError(f"--adapter.gap {self.gap}: this tower has {encoder.depth} blocks; give 1..{encoder.depth}")
        taps = (*range(0, encoder.depth, self.gap), encoder.depth)
        width, is_image = encoder.widths[0], type(encoder).grid is not StagedEncoder.grid
        if self.block == "mixer" and is_image:
            count = _token_count(encoder)
            adapter = SideAttentionAdapter(taps, lambda: Mixer(width, self.rank, count), self.depth)
        else:
            adapter = SideAttentionAdapter(taps, lambda: LowRankAttention(width, self.rank), self.depth)
        runner: Runner = Lean(self.early_chunk, self.tap_dtype) if self.lean else Plain()
        return AdaptedEncoder(encoder, adapter, runner)


def _token_count(encoder: StagedEncoder) -> int:
    """Tokens of an image of the tower's own size.

    Raises:
        UserError: the tower does not say its image size.
    """
    trunk: Any = getattr(encoder.model, "trunk", encoder.model)
    size = getattr(trunk, "image_size", None) or getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if size is None:
        raise UserError(f"--adapter.block mixer: the image size of {encoder.kind} is not known; use attention")
    rows, columns = (size, size) if isinstance(size, int) else size
    first = next(encoder.parameters())
    with torch.no_grad():
        hidden = encoder.embed(torch.zeros(1, 3, rows, columns, dtype=first.dtype, device=first.device)).hidden
    return math.prod(hidden.shape[1:-1])
