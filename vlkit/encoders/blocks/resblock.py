"""Running open_clip's residual attention block on batch-first tokens."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def is_plain(block: nn.Module) -> bool:
    """Whether a block is self-attention and MLP of open_clip's usual kind; a subclass may do anything."""
    return type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")


def run_resblock(block: nn.Module, hidden: Tensor, batch_first: bool, attn_mask: Tensor | None = None) -> Tensor:
    """Run one open_clip residual block on [B, L, D], whichever order of axes the block was built for.

    A plain block whose weights are frozen runs as :func:`_run_frozen`, in less time and memory; the result is the same.

    Args:
        block: the block.
        hidden: [B, L, D].
        batch_first: what the block was built for.
        attn_mask: float, added to the scores of attention: [L, L], open_clip's causal mask, or [B * heads, L, L], any
            mask; None = no mask.
    """
    causal = attn_mask is not None and attn_mask.ndim == 2
    if is_plain(block) and (attn_mask is None or causal) and _is_frozen(block):
        return _run_frozen(block, hidden, causal)
    if batch_first:
        return block(hidden, attn_mask=attn_mask)
    return block(hidden.transpose(0, 1), attn_mask=attn_mask).transpose(0, 1)


def _is_frozen(block: Any) -> bool:
    # An exact type: LoRA puts a module of its own in this place.
    return type(block.attn) is nn.MultiheadAttention and not any(p.requires_grad for p in block.parameters())


def _run_frozen(block: Any, hidden: Tensor, causal: bool) -> Tensor:
    """The block as it is; what is not needed any more is freed or, without gradient, written over at once."""
    hidden = hidden + block.ls_1(_attend(block.attn, block.ln_1(hidden), causal))
    expand, activation, shrink = block.mlp
    inner = expand(block.ln_2(hidden))
    inner = activation(inner) if torch.is_grad_enabled() else _activate_in_place(activation, inner)
    return hidden + block.ls_2(shrink(inner))


def _attend(attention: nn.MultiheadAttention, x: Tensor, causal: bool) -> Tensor:
    """Self-attention, [B, L, D] in and out, equal to the module's own.

    The module swaps the axes in front of its first product, which then runs as L small ones that each read the weights
    anew: of the text tower of a ViT-B-32 with 11 texts that takes a third of the block's time.
    """
    qkv = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, width]
    mixed = scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def _activate_in_place(activation: nn.Module, x: Tensor) -> Tensor:
    """``activation(x)``, in place of ``x`` where that can be done: it is the largest tensor of a block."""
    if type(activation) is nn.GELU:
        return torch.ops.aten.gelu_(x, approximate=activation.approximate)
    if type(activation) is QuickGELU:
        return x.mul_((1.702 * x).sigmoid_())
    return activation(x)
