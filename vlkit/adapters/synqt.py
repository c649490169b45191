"""SynQT, synthesised query tuning (ECCV 2024): queries that are made per sample pass through every frozen block.

Block i, with the input ``x_i`` [B, N, D] of the untouched sequence, seeds ``q_i`` [P, D] and the pooled result
``z_{i-1}`` [B, 1, D] of the block before (LayerNorms with eps 1e-5; ``Ad(x) = x + W2 gelu(W1 x)``):

    p = Ad_i(q_i + s_feat z_{i-1})                        query synthesis
    u = LN1_i p
    p = p + s_attn A_o(softmax(A_q(LN_q u) A_k(LN_kv u)^T / sqrt D) A_v(LN_kv u))
    p = p + s_ffn Ad'_i(LN2_i p)
    h = frozen attention from p to x_i,  m = frozen MLP of p + h,  p = p + h + m
    z_i, H_i, M_i = means of p, h, m over the P queries

    F = [z_{n-1}, z_0 .. z_{n-1}, H_0 .. H_{n-1}, M_0 .. M_{n-1}]                 3 n + 1 features [B, D]
    f_j = F_j + Ad(LN F_j),  w = [1, tanh(gelu(W f_0 + b))],  out = LN(mean_j w_j f_j)

The frozen blocks run on the queries alone, and the sequence without gradient. Dropout and DropPath are this module's
own; the frozen base stays in eval mode, where the published code also drops its residual branches at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder, Plain
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.encoders.blocks.anatomy import Asked, Opaque, anatomy_of
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError

NORM_EPS = 1e-5


class Bottleneck(nn.Module):
    """``x + drop(W2 drop(gelu(W1 x)))``; [..., width] in and out.

    Args:
        width: D.
        hidden: width between the two linear maps.
        dropout: dropout after the GELU and after the second map.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.dropout(self.up(self.dropout(F.gelu(self.down(x)))))


class SeedAttention(nn.Module):
    """Self-attention of the P queries of a block in one head of width D; its four maps are bottlenecks.

    Args:
        width: D.
        hidden: width inside the maps.
        dropout: dropout on the attention weights.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.query_norm, self.key_norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))
        self.query, self.key, self.value, self.out = (Bottleneck(width, hidden) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        queries, other = self.query_norm(x), self.key_norm(x)
        scores = self.query(queries) @ self.key(other).transpose(1, 2) * x.shape[-1] ** -0.5
        return self.out(self.dropout(scores.softmax(-1)) @ self.value(other))


class Synthesis(nn.Module):
    """The module that makes the queries of one block.

    Args:
        width: D.
        hidden, attention_hidden: widths inside the bottlenecks.
        attn_scale, ffn_scale: first values of the learned factors s_attn and s_ffn.
        dropout: dropout inside and after the module.
    """

    def __init__(
        self, width: int, hidden: int, attention_hidden: int, attn_scale: float, ffn_scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.first = Bottleneck(width, hidden, dropout)
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))
        self.attention = SeedAttention(width, attention_hidden, dropout)
        self.mlp = Bottleneck(width, hidden, dropout)
        self.attn_scale = nn.Parameter(torch.full((1,), attn_scale))
        self.ffn_scale = nn.Parameter(torch.full((1,), ffn_scale))
        self.dropout = nn.Dropout(dropout)

    def forward(self, seeds: Tensor) -> Tensor:
        """[B, P, D] seeds with the features of the block before -> queries [B, P, D]."""
        p = self.first(seeds)
        p = p + self.attn_scale * self.attention(self.attention_norm(p))
        p = p + self.ffn_scale * self.mlp(self.mlp_norm(p))
        return self.dropout(p)


class FeatureMix(nn.Module):
    """Mixes the 3 n + 1 features with weights that depend on the sample.

    Args:
        width: D.
        count: number of features.
        hidden: width inside the bottleneck that all features share.
        dropout: dropout inside the bottleneck and on the weights.
        drop_path: probability that a feature other than the first is dropped, drawn for each sample and feature.
    """

    def __init__(self, width: int, count: int, hidden: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm, self.final_norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))
        self.refine = Bottleneck(width, hidden, dropout)
        self.weights = nn.Linear(width, count - 1)
        self.dropout, self.drop_path = nn.Dropout(dropout), drop_path

    def forward(self, features: Tensor) -> Tensor:
        """[B, 3 n + 1, D] -> [B, D]."""
        # The bottleneck holds its own identity, so the normalised feature is added too.
        refined = features + self.refine(self.norm(features))
        first, others = refined[:, :1], refined[:, 1:]
        if self.training and self.drop_path:
            kept = torch.rand(others.shape[:2], device=others.device) >= self.drop_path
            others = others * (kept.to(others.dtype) / (1 - self.drop_path)).unsqueeze(-1)
        weights = torch.tanh(self.dropout(F.gelu(self.weights(first.squeeze(1)))))
        mixed = (first.sum(1) + torch.einsum("bj,bjd->bd", weights, others)) / features.shape[1]
        return self.final_norm(mixed)


class SynqtAdapter(Adapter):
    """SynQT on one tower: synthesised queries, the mix of their features, and a linear map to the embedding.

    Args:
        width: D.
        out_dim: E, width of the pooled embedding.
        depth: n, number of blocks; all are read.
        tokens_of: (block number, its input stream) -> what its queries attend to, [B, N, D].
        ask: (block number, these tokens, mask, queries) -> output and terms of the block.
        queries: P.
        hidden: width inside the bottlenecks of synthesis and mix.
        attention_hidden: width inside those of the synthesis attention.
        scales: first values of s_feat, s_attn and s_ffn.
        dropout, drop_path: see :class:`Synthesis` and :class:`FeatureMix`.
        init: ``"identity"``: ``last`` plus a map of ``out`` that starts at 0; ``"published"``: that map alone.
    """

    handoff = "pooled"
    late = 0

    def __init__(
        self,
        width: int,
        out_dim: int,
        depth: int,
        tokens_of: Callable[[int, Stream], Tensor],
        ask: Callable[[int, Tensor, Tensor | None, Tensor], Asked],
        queries: int = 4,
        hidden: int = 48,
        attention_hidden: int = 8,
        scales: tuple[float, float, float] = (0.1, 0.1, 0.1),
        dropout: float = 0.1,
        drop_path: float = 0.3,
        init: Literal["published", "identity"] = "identity",
    ) -> None:
        super().__init__()
        self.layers, self._tokens_of, self._ask = tuple(range(depth)), tokens_of, ask
        self.seeds = nn.Parameter(torch.empty(depth, queries, width).uniform_(-1, 1))
        self.feat_scale = nn.Parameter(torch.full((1,), scales[0]))
        self.blocks = nn.ModuleList(
            Synthesis(width, hidden, attention_hidden, scales[1], scales[2], dropout) for _ in range(depth)
        )
        self.mix = FeatureMix(width, 3 * depth + 1, hidden, dropout, drop_path)
        self.head = nn.Linear(width, out_dim)
        self.residual = init == "identity"
        if self.residual:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def reduce(self, index: int, tap: Stream) -> Stream:
        """The normalised input of block ``index``, [B, N, D], which replaces the tap: backward needs nothing else."""
        return tap.replace(hidden=self._tokens_of(index, tap))

    def features(self, found: list[Stream]) -> Tensor:
        """Run the queries through every block: n results of :meth:`reduce` -> [B, 3 n + 1, D]."""
        pooled: list[list[Tensor]] = [[], [], []]
        for i, stream in enumerate(found):
            seeds = self.seeds[i].expand(stream.hidden.shape[0], -1, -1)
            if i:
                seeds = seeds + self.feat_scale * pooled[0][-1].unsqueeze(1)
            asked = self._ask(i, stream.hidden, stream.mask, self.blocks[i](seeds))
            for column, state in zip(pooled, asked, strict=True):
                column.append(state.mean(1))
        return torch.stack([pooled[0][-1], *pooled[0], *pooled[1], *pooled[2]], dim=1)

    def merge(self, reduced: list[Stream], last: Tensor, stream: Stream) -> Tensor:
        """[B, E]: the map of ``out``, added to ``last`` with init ``identity``."""
        out = self.head(self.mix(self.features(reduced)))
        return last + out if self.residual else out


@dataclass
class SynqtOptions(MethodOptions):
    """SynQT: queries made for each sample pass through every frozen block; their features are mixed."""

    kind: Literal["synqt"] = "synqt"
    feeds_tokens: ClassVar[bool] = False
    fits_any_tower: ClassVar[bool] = False
    queries: int = 4
    """Queries per block (published: 1, 4 or 16, depending on the data)."""
    hidden: int = 48
    """Width inside the adapters of synthesis and feature mix."""
    attention_hidden: int = 8
    """Width inside the adapters of the synthesis attention."""
    feat_scale: float = 0.1
    """First value of the learned factor on the previous block's result (published: 0.1 or 1)."""
    attn_scale: float = 0.1
    """First value of the learned factor on the synthesis attention (published: 0.1 or 1)."""
    ffn_scale: float = 0.1
    """First value of the learned factor on the synthesis MLP (published: 0.1 or 1)."""
    dropout: float = 0.1
    """Dropout inside the synthesis and on the mixing weights."""
    drop_path: float = 0.3
    """Probability of dropping a feature, for each sample and each feature but the first."""
    init: Literal["published", "identity"] = "identity"
    """identity: start exactly at the base's zero-shot answer; published: only the map of the mixed features."""

    def __post_init__(self) -> None:
        for name in ("queries", "hidden", "attention_hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be at least 1")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be at least 0 and less than 1")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add the query stream, for a head that reads the pooled embedding.

        Raises:
            UserError: the head reads tokens, which SynQT does not change, or the inside of the tower's blocks is not
                known.
        """
        if reads == "tokens":
            raise self.refusal("adapts the pooled embedding, but this head reads tokens", "feeds_tokens")
        try:
            for i in range(encoder.depth):
                anatomy_of(encoder.transformer_block(i))
        except Opaque as error:
            raise self.refusal(str(error), "fits_any_tower") from None
        adapter = SynqtAdapter(
            encoder.widths[0],
            encoder.out_dim,
            encoder.depth,
            encoder.seen_by_queries,
            encoder.query_in_parts,
            self.queries,
            self.hidden,
            self.attention_hidden,
            (self.feat_scale, self.attn_scale, self.ffn_scale),
            self.dropout,
            self.drop_path,
            self.init,
        )
        _copy_final_norm(encoder, adapter.mix.final_norm)
        # merge holds the sequence of every block until the chunk is done, also without gradient.
        return AdaptedEncoder(encoder, adapter, Plain("auto"))


FINAL_NORMS = (
    "ln_post",
    "ln_final",
    "trunk.norm",
    "final_layer_norm",
    "encoder.final_layer_norm",
    "norm",
    "vision_model.post_layernorm",
    "text_model.final_layer_norm",
    "post_layernorm",
)
"""Paths to the norm after the last block in the towers' models."""


@torch.no_grad()
def _copy_final_norm(encoder: StagedEncoder, norm: nn.LayerNorm) -> None:
    """Published initialisation of the last norm: weight and bias of the base's final norm, where it has one."""
    for path in FINAL_NORMS:
        found: Any = encoder.model
        for name in path.split("."):
            found = getattr(found, name, None)
        weight = getattr(found, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == norm.weight.shape:
            norm.weight.copy_(weight)
            bias = getattr(found, "bias", None)
            if isinstance(bias, Tensor):
                norm.bias.copy_(bias)
            return
