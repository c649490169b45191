"""VQT, visual query tuning (CVPR 2023): learned queries attend to every frozen block's input and never change it.

Block i, whose input is ``X_i`` [B, N, D], runs on its own queries ``q_i`` [Q, D] as if they were tokens, with keys and
values only from the sequence (:meth:`vlkit.encoders.staged.StagedEncoder.query`):

    z_i = block_i(q_i | X_i)                                               [B, Q, D]
    features = unit(flatten z_0), ..., unit(flatten z_{n-1})               [B, n Q D], each block's part of norm 1
    pooled = last + W features

The sequence is that of the frozen base and needs no gradient; in backward the blocks are independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter
from vlkit.encoders.blocks.anatomy import Opaque, anatomy_of
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError

Combine = Literal["concat", "mean", "weighted", "attention"]
NORM_EPS = 1e-12


class VqtAdapter(Adapter):
    """Learned queries, and a linear map on their outputs.

    Args:
        width: D.
        out_dim: E, width of the pooled embedding.
        layers: blocks that are read (tap i is the input of block i).
        ask: (block number, its input stream, queries) -> [B, Q, D]; see ``StagedEncoder.query``.
        queries: Q.
        combine: how the Q outputs of a block form its features: ``concat``; their ``mean``; a ``weighted`` sum with
            learned weights that start at 1; ``attention``: all outputs first attend to each other in a trained layer
            with one head, then ``concat``.
        dropout: dropout on the queries, drawn separately for each example.
        spread: the queries are initialised uniformly in [-spread, spread].
        init: ``"identity"``: W starts at 0; ``"published"``: Kaiming-normal by the number of outputs.
    """

    handoff = "pooled"
    late = 0

    def __init__(
        self,
        width: int,
        out_dim: int,
        layers: tuple[int, ...],
        ask: Callable[[int, Stream, Tensor], Tensor],
        queries: int = 1,
        combine: Combine = "concat",
        dropout: float = 0.1,
        spread: float = 0.1,
        init: Literal["published", "identity"] = "identity",
    ) -> None:
        super().__init__()
        self.layers, self.combine, self._ask = tuple(layers), combine, ask
        self.queries = nn.Parameter(torch.empty(len(layers), queries, width).uniform_(-spread, spread))
        self.dropout = nn.Dropout(dropout)
        self.weights = nn.Parameter(torch.ones(len(layers), queries)) if combine == "weighted" else None
        self.mix = nn.MultiheadAttention(width, 1, batch_first=True) if combine == "attention" else None
        rows = queries if combine in ("concat", "attention") else 1
        self.head = nn.Linear(len(layers) * rows * width, out_dim)
        nn.init.zeros_(self.head.bias)
        if init == "identity":
            nn.init.zeros_(self.head.weight)
        else:
            nn.init.kaiming_normal_(self.head.weight, mode="fan_out")

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """Outputs of the queries of block ``layers[index]``, [B, Q, D]; ``tap`` is the input of the block."""
        queries = self.queries[index].expand(tap.hidden.shape[0], -1, -1)
        return self._ask(self.layers[index], tap, self.dropout(queries))

    def features(self, found: list[Tensor]) -> Tensor:
        """Concatenate the unit-norm features of all blocks: n tensors [B, Q, D] -> [B, n Q D] (or [B, n D])."""
        if self.mix is not None:
            tokens = torch.cat(found, dim=1)
            found = list(self.mix(tokens, tokens, tokens, need_weights=False)[0].chunk(len(found), dim=1))
        if self.combine == "mean":
            found = [z.mean(1) for z in found]
        elif self.weights is not None:
            found = [torch.einsum("bqd,q->bd", z, w) for z, w in zip(found, self.weights, strict=True)]
        return torch.cat([unit(z.flatten(1)) for z in found], dim=1)

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, E]: ``last`` plus the linear map of the features."""
        return last + self.head(self.features(reduced))


def unit(x: Tensor) -> Tensor:
    """``x / max(|x|, 1e-12)`` over the last dimension."""
    return F.normalize(x, dim=-1, eps=NORM_EPS)


@dataclass
class VqtOptions(MethodOptions):
    """VQT: learned queries attend to every frozen block's input; the frozen tokens never see them."""

    kind: Literal["vqt"] = "vqt"
    feeds_tokens: ClassVar[bool] = False
    fits_any_tower: ClassVar[bool] = False
    queries: int = 1
    """Queries per block (published: 1 on most data, 10 or 20 where position matters)."""
    layers: tuple[int, ...] | None = None
    """Blocks (0-based) that are read; default: all."""
    combine: Combine = "concat"
    """How the query outputs of a block are combined: concat, mean, weighted (learned sum) or attention (all outputs
    first attend to each other)."""
    dropout: float = 0.1
    """Dropout on the queries."""
    init: Literal["published", "identity"] = "identity"
    """identity: start exactly at the base's zero-shot answer; published: random linear map."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise UserError(f"--adapter.queries {self.queries}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--adapter.dropout {self.dropout}: must be at least 0 and less than 1")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add the queries, for a head that reads the pooled embedding.

        Raises:
            UserError: the head reads tokens, which VQT does not change; ``layers`` do not fit; or the inside of the
                tower's blocks is not known.
        """
        if reads == "tokens":
            raise self.refusal("adapts the pooled embedding, but this head reads tokens", "feeds_tokens")
        layers = tuple(range(encoder.depth)) if self.layers is None else tuple(self.layers)
        if not layers or any(not 0 <= i < encoder.depth for i in layers) or list(layers) != sorted(set(layers)):
            raise UserError(
                f"--adapter.layers {list(layers)}: give ascending block numbers from 0..{encoder.depth - 1}, "
                "at least one"
            )
        try:
            for i in layers:
                anatomy_of(encoder.transformer_block(i))
        except Opaque as error:
            raise self.refusal(str(error), "fits_any_tower") from None
        width = encoder.widths[0]
        spread = math.sqrt(6 / (3 * _patch_values(encoder) + width))
        adapter = VqtAdapter(
            width, encoder.out_dim, layers, encoder.query, self.queries, self.combine, self.dropout, spread, self.init
        )
        return AdaptedEncoder(encoder, adapter)


def _patch_values(encoder: StagedEncoder) -> int:
    """Pixels per patch (published: the queries are initialised like a patch embedding's weights); 0 for texts."""
    patch = next((m for m in encoder.model.modules() if isinstance(m, nn.Conv2d)), None)
    return 0 if patch is None else math.prod(patch.kernel_size)
