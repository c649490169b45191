"""Initial weights with which a T5 compares texts from the first step.

A transformer with random weights learns for long to find an equal token elsewhere in its input, and comparing two texts
begins with that. Queries that start as their keys let equal tokens attend to each other at once ("Mimetic
initialization of self-attention layers", Trockman and Kolter 2023: products of query and key weights of trained
transformers are close to the identity).
"""

from __future__ import annotations

from typing import Any

import torch

SELF, BEFORE, AFTER = 0, 1, 17
"""Buckets of T5's relative positions 0, -1 and 1 in an encoder with 32 buckets."""


@torch.no_grad()
def matching_heads(model: Any) -> None:
    """Change the random weights of a ``T5ForConditionalGeneration``: in half of the heads of every encoder block,
    queries equal keys and tokens do not attend to themselves; one head looks at the token before, one at the token
    after.

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
