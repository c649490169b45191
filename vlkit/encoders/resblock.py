"""Running open_clip's residual attention block on batch-first tokens."""

from __future__ import annotations

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

# Values of the state that a block works on at once where nothing is kept for backward: 8 samples of a ViT-B-32 on a
# CPU, 120 on a GPU. Inside a block the state is there ten times over, so fewer samples at once lower the peak of
# inference and of the early route; the weights stay in the processor's cache from slice to slice.
AT_ONCE = {"cpu": 330_000, "cuda": 4_500_000}


def is_plain(block: nn.Module) -> bool:
    """Whether a block is self-attention and MLP of open_clip's usual kind; a subclass may do anything."""
    return type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")


def run_resblock(block: nn.Module, hidden: Tensor, batch_first: bool, attn_mask: Tensor | None = None) -> Tensor:
    """Run one open_clip residual block on [B, L, D], whichever order of axes the block was built for.

    Args:
        block: the block.
        hidden: [B, L, D].
        batch_first: what the block was built for.
        attn_mask: float, added to the scores of attention: [L, L], open_clip's causal mask, or [B * heads, L, L], any
            mask; None = no mask.
    """
    causal = attn_mask is not None and attn_mask.ndim == 2
    if is_plain(block) and (attn_mask is None or causal) and _is_frozen(block.attn):
        return _in_slices(block, hidden, causal)
    if batch_first:
        return block(hidden, attn_mask=attn_mask)
    return block(hidden.transpose(0, 1), attn_mask=attn_mask).transpose(0, 1)


def _is_frozen(attention: nn.Module) -> bool:
    # An exact type: LoRA puts a module of its own in this place.
    return type(attention) is nn.MultiheadAttention and not any(p.requires_grad for p in attention.parameters())


def _in_slices(block: ResidualAttentionBlock, hidden: Tensor, causal: bool) -> Tensor:
    if torch.is_grad_enabled():
        return _run(block, hidden, causal)
    at_once = AT_ONCE.get(hidden.device.type, AT_ONCE["cuda"])
    samples = max(1, at_once // max(1, hidden[:1].numel()))
    if samples >= len(hidden):
        return _run(block, hidden, causal)
    out: Tensor | None = None
    for start in range(0, len(hidden), samples):
        part = _run(block, hidden[start : start + samples], causal)
        if out is None:  # autocast may give another number format than the state came in
            out = part.new_empty(hidden.shape)
        out[start : start + samples] = part
    return out


def _run(block: ResidualAttentionBlock, hidden: Tensor, causal: bool) -> Tensor:
    hidden = hidden + block.ls_1(_attend(block.attn, block.ln_1(hidden), causal))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))


def _attend(attention: nn.MultiheadAttention, x: Tensor, causal: bool) -> Tensor:
    """Self-attention, [B, L, D] in and out, equal to the module's own.

    The module swaps the axes in front of its first product, which then runs as L small ones that each read the weights
    anew: of the text tower of a ViT-B-32 with 11 texts that takes a third of the block's time.
    """
    qkv = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, width]
    mixed = scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))
