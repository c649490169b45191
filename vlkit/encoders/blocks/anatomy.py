"""The parts of a transformer block: its linear maps and norms under the same names for every library.

Methods that run a frozen block on their own tokens (:func:`ask`) or copy part of its weights
(:mod:`vlkit.adapters.lst.pruning`) need this; running a block does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention as TimmAttention
from timm.layers.mlp import Mlp as TimmMlp
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from vlkit.encoders.blocks.parts import AttentionParts, BlockParts, part_at
from vlkit.encoders.families import family_of_block
from vlkit.errors import UserError


class Opaque(UserError):
    """The parts of a tower or block are not known; the caller adds an alternative to the message."""


@dataclass(frozen=True)
class Dense:
    """A linear map: ``x @ weight.T + bias``; ``weight`` is [out, in] and may be a view of a larger parameter."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Attention:
    """The four linear maps of a softmax attention.

    Attributes:
        query, key, value: D -> heads * head width.
        out: heads * head width -> D.
        heads: number of heads.
        scale: factor on the dot products of queries and keys.
        norm: the norm of this sub-layer.
    """

    query: Dense
    key: Dense
    value: Dense
    out: Dense
    heads: int
    scale: float
    norm: nn.Module


@dataclass(frozen=True)
class Anatomy:
    """A transformer block.

    Attributes:
        norm_first: pre-norm (CLIP, ViT, T5); False = post-norm (BERT).
        attention: self-attention.
        cross: cross-attention to an encoder's memory, or None.
        expand: the input maps of the MLP (two in a gated MLP).
        shrink: the output map of the MLP.
        mlp_norm: the norm of the MLP.
        mlp: the MLP without norm and residual: [..., D] -> [..., D].
        scales: per-channel factors on the outputs of attention and MLP (layer scale), or identities.
    """

    norm_first: bool
    attention: Attention
    cross: Attention | None
    expand: tuple[Dense, ...]
    shrink: Dense
    mlp_norm: nn.Module
    mlp: Callable[[Tensor], Tensor]
    scales: tuple[nn.Module, nn.Module] = (nn.Identity(), nn.Identity())


def anatomy_of(block: nn.Module) -> Anatomy:
    """Name the parts of a library's transformer block.

    Raises:
        Opaque: the kind of block is not supported.
    """
    if isinstance(block, ResidualAttentionBlock):
        return _open_clip(block)
    if _is_plain_timm(block):
        return _timm(cast(TimmBlock, block))
    family = family_of_block(block)
    if family is None or family.parts is None:
        raise Opaque(f"block {type(block).__name__}: its attention is not plain softmax attention")
    return _hf(block, family.parts)


def _dense(layer: nn.Linear) -> Dense:
    return Dense(layer.weight, layer.bias)


def _three(weight: Tensor, bias: Tensor | None) -> tuple[Dense, Dense, Dense]:
    """Split a stacked parameter into query, key and value."""
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (Dense(w, b) for w, b in zip(weight.chunk(3), biases, strict=True))
    return q, k, v


def _open_clip(block: ResidualAttentionBlock) -> Anatomy:
    attention: Any = block.attn
    mlp: Any = block.mlp
    parts = _three(attention.in_proj_weight, attention.in_proj_bias)
    return Anatomy(
        True,
        Attention(*parts, _dense(attention.out_proj), attention.num_heads, attention.head_dim**-0.5, block.ln_1),
        None,
        (_dense(mlp.c_fc),),
        _dense(mlp.c_proj),
        block.ln_2,
        block.mlp,
        (block.ls_1, block.ls_2),
    )


def _is_plain_timm(block: nn.Module) -> bool:
    # Compares exact types, because subclasses may differ. Extra norms and gates would sit between these maps.
    if type(block) is not TimmBlock or type(block.attn) is not TimmAttention or type(block.mlp) is not TimmMlp:
        return False
    extras = (block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm)
    return block.attn.gate is None and all(isinstance(extra, nn.Identity) for extra in extras)


def _timm(block: TimmBlock) -> Anatomy:
    attention: Any = block.attn
    mlp: Any = block.mlp
    parts = _three(attention.qkv.weight, attention.qkv.bias)
    return Anatomy(
        True,
        Attention(*parts, _dense(attention.proj), attention.num_heads, attention.scale, block.norm1),
        None,
        (_dense(mlp.fc1),),
        _dense(mlp.fc2),
        block.norm2,
        block.mlp,
        (block.ls1, block.ls2),
    )


def _hf(block: nn.Module, parts: BlockParts) -> Anatomy:
    def modules(paths: tuple[str, ...]) -> list[Any]:
        return [part for path in paths if (part := part_at(block, path)) is not None]

    cross = parts.cross if parts.cross is not None and part_at(block, parts.cross.query) is not None else None
    return Anatomy(
        parts.norm_first,
        _hf_attention(block, parts.attention),
        None if cross is None else _hf_attention(block, cross),
        tuple(_dense(layer) for layer in modules(parts.expand)),
        _dense(part_at(block, parts.shrink)),
        part_at(block, parts.mlp_norm),
        partial(_in_turn, modules(parts.mlp)),
    )


def _hf_attention(block: nn.Module, parts: AttentionParts) -> Attention:
    query, key, value, out = (_dense(part_at(block, path)) for path in (parts.query, parts.key, parts.value, parts.out))
    heads = part_at(block, parts.heads)
    scale = (len(query.weight) // heads) ** -0.5 if parts.scaled else 1.0
    return Attention(query, key, value, out, heads, scale, part_at(block, parts.norm))


def _in_turn(modules: list[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def attend(attention: Attention, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Let ``queries`` attend to ``tokens`` through a block's own attention.

    Keys and values are never computed: with ``k = W_k n`` the score ``q . k`` is ``(W_k^T q) . n``, and
    ``sum a (W_v n)`` is ``W_v (sum a n)``. So autograd saves the tokens once instead of keys and values, and with few
    queries the products are also smaller.

    Args:
        attention: the linear maps.
        queries: [B, Q, D], normalised if the block is pre-norm.
        tokens: [B, N, D], normalised likewise.
        mask: [B, N] bool, True = may be attended to; None = all.

    Returns:
        [B, Q, D].
    """
    heads, width = attention.heads, tokens.shape[-1]
    query = nn.functional.linear(queries, attention.query.weight, attention.query.bias) * attention.scale
    query = query.unflatten(-1, (heads, -1))  # [B, Q, heads, head width]
    key = attention.key.weight.view(heads, -1, width)
    scores = torch.einsum("bqhe,hed->bhqd", query, key).flatten(1, 2) @ tokens.transpose(1, 2)
    scores = scores.unflatten(1, (heads, -1))  # [B, heads, Q, N]
    if attention.key.bias is not None:
        bias = attention.key.bias.view(heads, -1)
        scores = scores + torch.einsum("bqhe,he->bhq", query, bias).unsqueeze(-1)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    mixed = (scores.softmax(-1).flatten(1, 2) @ tokens).unflatten(1, (heads, -1))  # [B, heads, Q, D]
    value = torch.einsum("bhqd,hed->bqhe", mixed, attention.value.weight.view(heads, -1, width)).flatten(2)
    if attention.value.bias is not None:
        value = value + attention.value.bias
    return nn.functional.linear(value, attention.out.weight, attention.out.bias)


class Asked(NamedTuple):
    """What a block computes for queries; each [B, Q, D].

    Attributes:
        output: the block's output.
        attention: the term that its attention adds to the queries.
        mlp: the term that its MLP adds.
    """

    output: Tensor
    attention: Tensor
    mlp: Tensor


def seen_by_queries(block: Anatomy, hidden: Tensor) -> Tensor:
    """What queries of a block attend to: its input [B, N, D], normalised if the block is pre-norm."""
    # A sequence without gradient is a constant: autograd need not save the input of the norm.
    with torch.set_grad_enabled(torch.is_grad_enabled() and hidden.requires_grad):
        return block.attention.norm(hidden) if block.norm_first else hidden


def ask_in_parts(block: Anatomy, tokens: Tensor, mask: Tensor | None, queries: Tensor) -> Asked:
    """Run a block on ``queries`` that attend to a sequence but not to each other; see :func:`ask`.

    Args:
        block: block of a frozen base.
        tokens: [B, N, D] from :func:`seen_by_queries`.
        mask: [B, N] bool, True = may be attended to; None = all.
        queries: [Q, D] or [B, Q, D].
    """
    queries = queries.expand(tokens.shape[0], *queries.shape[-2:])
    if not block.norm_first:
        found = attend(block.attention, queries, tokens, mask)
        queries = block.attention.norm(queries + found)
        changed = block.mlp(queries)
        return Asked(block.mlp_norm(queries + changed), found, changed)
    scale_attention, scale_mlp = block.scales
    found = scale_attention(attend(block.attention, block.attention.norm(queries), tokens, mask))
    queries = queries + found
    changed = scale_mlp(block.mlp(block.mlp_norm(queries)))
    return Asked(queries + changed, found, changed)


def ask(block: Anatomy, hidden: Tensor, mask: Tensor | None, queries: Tensor) -> Tensor:
    """Run a block on ``queries`` that attend to a sequence but not to each other.

    Position biases and causal masks do not apply, because a query has no position in the sequence.

    Args:
        block: block of a frozen base.
        hidden: [B, N, D], the input of the block.
        mask: [B, N] bool, True = may be attended to; None = all.
        queries: [Q, D] or [B, Q, D].

    Returns:
        [B, Q, D].
    """
    return ask_in_parts(block, seen_by_queries(block, hidden), mask, queries).output
