"""Initial weights with which a T5 compares texts from the first step.

A transformer with random weights learns for long to find an equal token elsewhere in its input, and comparing two texts
begins with that. Queries that start as their keys let equal tokens attend to each other at once ("Mimetic
initialization of self-attention layers", Trockman and Kolter 2023: products of query and key weights of trained
transformers are close to the identity).

Equal words are not enough: "a red car and a blue cat" and "a blue car and a red cat" have the same. So block 1 begins
with a comparison, our own: block 0 writes what stands beside a token into a space of its own, and block 1 subtracts
from it what stands beside the equal token elsewhere. Little is left where both texts say the same.
"""

from __future__ import annotations

from typing import Any

import torch

SELF, BEFORE, AFTER = 0, 1, 17
"""Buckets of T5's relative positions 0, -1 and 1 in an encoder with 32 buckets."""


@torch.no_grad()
def matching_heads(model: Any, subtract: bool = True) -> None:
    """Change the random weights of a ``T5ForConditionalGeneration``: in half of the heads of every encoder block,
    queries equal keys and tokens do not attend to themselves; one head looks at the token before, one at the token
    after. The first two matching heads of block 1 subtract what these two have written in block 0 at the token that
    they find (``subtract``).

    Raises:
        ValueError: the encoder has fewer than four heads or other than 32 buckets of relative positions.
    """
    blocks = model.encoder.block
    bias = blocks[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads], shared by all blocks
    buckets, heads = bias.shape
    half = heads // 2
    if half < 2 or buckets != 32:
        raise ValueError(f"{heads} heads and {buckets} buckets: needs at least 4 heads and 32 buckets")
    for block in blocks:
        attention = block.layer[0].SelfAttention
        rows = half * attention.key_value_proj_dim
        # T5 does not divide by the root of the width; its initial queries are smaller by it.
        attention.q.weight[:rows] = attention.k.weight[:rows] * attention.key_value_proj_dim**-0.5
    bias[SELF, :half] = -8.0
    bias[BEFORE, half] = 4.0
    bias[AFTER, half + 1] = 4.0
    if subtract and len(blocks) > 1:
        _subtract(blocks[0].layer[0].SelfAttention, blocks[1].layer[0].SelfAttention, half)


def _subtract(writes: Any, reads: Any, half: int) -> None:
    """``writes``: heads ``half`` and ``half + 1`` write into two orthogonal subspaces of the residual stream;
    ``reads``: heads 0 and 1 read them and write them back with the opposite sign.
    """
    width, size = writes.o.weight.shape[0], writes.key_value_proj_dim
    axes = torch.linalg.qr(torch.randn(width, width))[0].to(writes.o.weight.device)
    for number in (0, 1):
        space = axes[:, number * size : (number + 1) * size]
        there, here = (slice(head * size, (head + 1) * size) for head in (half + number, number))
        # Twice as large as random weights would make it: beside a token's own embedding it must be seen.
        writes.o.weight[:, there] = 2 * space
        reads.v.weight[here] = space.T
        reads.o.weight[:, here] = -space
