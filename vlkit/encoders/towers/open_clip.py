"""open_clip's own transformer towers as staged encoders, and how one of their blocks runs.

:class:`ClipVision` stages ``VisionTransformer``, :class:`ClipText` stages ``TextTransformer``, which is also the text
half of a plain ``CLIP`` (:func:`text_half`). Both run their blocks through :func:`run_resblock`.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, cast

import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from vlkit.encoders.shapes_only import shapes_only
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.encoders.stored_layers import StoredAttention
from vlkit.encoders.towers.text import TextEncoder, up_to

logger = logging.getLogger(__name__)

# --- towers ---


class ClipVision(StagedEncoder):
    """open_clip ``VisionTransformer``: [B, 3, H, W] images -> tokens [B, 1 + patches, D], class token first.

    Args:
        model: the tower. :func:`vlkit.encoders.stage.stage_vision` rejects towers without a single pooled vector
            (``pool_type="none"`` and no contrastive pooler), which have no :meth:`pool`.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.depth = len(model.transformer.resblocks)
        self.widths = (model.transformer.width,) * (self.depth + 1)
        self.stages = tuple(range(self.depth + 1))
        self.token_dim = model.transformer.width
        pooled_width = model.attn_pool.query.shape[1] if model.attn_pool is not None else self.token_dim
        self.out_dim = pooled_width if model.proj is None else model.proj.shape[1]

    def embed(self, x: Tensor) -> Stream:
        """Images [B, 3, H, W] -> stream with hidden [B, 1 + patches, D], class token at position 0."""
        hidden = self.model._embeds(x)
        summary = None
        if self._has_class_token_pool():
            summary = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
        return Stream(hidden, summary=summary)

    def block(self, i: int, stream: Stream) -> Stream:
        """Run transformer block ``i``; [B, L, D] in and out."""
        transformer = self.model.transformer
        run = self.runs(run_resblock)
        return stream.replace(hidden=run(transformer.resblocks[i], stream.hidden, batch_first(transformer)))

    def transformer_block(self, i: int) -> nn.Module:
        """open_clip's residual attention block ``i``."""
        return self.model.transformer.resblocks[i]

    def pool(self, stream: Stream) -> Tensor:
        """Pooled, normed and projected image embedding, [B, out_dim]."""
        pooled, _ = self.model._pool(stream.hidden)
        if self.model.proj is not None:
            pooled = pooled @ self.model.proj
        # A contrastive pooler has one query and keeps that axis: [B, 1, out_dim].
        return pooled.squeeze(1) if pooled.ndim == 3 else pooled

    @property
    def pools_one_token(self) -> bool:
        """True for towers that pool their class token and whose last block is open_clip's own."""
        return self._has_class_token_pool() and is_plain(self.model.transformer.resblocks[-1])

    def _has_class_token_pool(self) -> bool:
        return self.model.attn_pool is None and self.model.pool_type == "tok"

    def tokens(self, stream: Stream) -> Tensor:
        """[B, 1 + patches, D]: every token after the norm that precedes pooling."""
        pooler = self.model.attn_pool
        if pooler is not None and self.model.attn_pool_contrastive is None:
            return pooler.ln_k(stream.hidden)
        return self.model.ln_post(stream.hidden)

    @property
    def joint_dim(self) -> int | None:
        """Width of the joint space if the tower pools one token; an attentional pooler has no projection of tokens."""
        return self.out_dim if self._has_class_token_pool() and self.model.proj is not None else None

    def project(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, joint_dim], as the class token is projected (MaskCLIP, Zhou et al., ECCV 2022)."""
        return tokens @ self.model.proj

    def grid(self, stream: Stream) -> tuple[int, int]:
        """Rows and columns of the patches, which follow the class token."""
        rows, columns = self.model.grid_size
        return rows, columns


class ClipText(TextEncoder):
    """open_clip ``TextTransformer``: ids [B, L] int64 -> tokens [B, L, D] (CoCa: [B, L + 1, D], class token last).

    ``L`` may be shorter than the context length: positions and the causal mask are cut to fit.

    Args:
        model: the tower. :func:`vlkit.encoders.stage.stage_text` rejects towers with ``pool_type="none"``, which have
            no pooled embedding.
        pad_id: padding id of the tokenizer; default: that of the tower. Only :meth:`real` uses it.
    """

    def __init__(self, model: TextTransformer, pad_id: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.pad_id = model.pad_id if pad_id is None else pad_id
        self.depth = len(model.transformer.resblocks)
        self.widths = (model.transformer.width,) * (self.depth + 1)
        self.stages = tuple(range(self.depth + 1))
        self.token_dim = model.transformer.width
        self.out_dim = _projected_width(model)
        self.causal = model.attn_mask is not None
        padding_unseen = self.causal or model.use_pad_mask
        # A class token at the end, or pooling of the last position, depends on the length: trimming would move it.
        self.trimmable = padding_unseen and model.cls_emb is None and model.pool_type != "last"

    def embed(self, x: Tensor) -> Stream:
        """Ids [B, L] -> stream with hidden [B, L, D], its mask of real tokens and the position that is pooled."""
        hidden, attn_mask = self.model._embeds(x)
        length = hidden.shape[1]
        if attn_mask is not None and attn_mask.ndim == 2:
            attn_mask = attn_mask[:length, :length]
        mask = self.real(x)
        if self.model.cls_emb is not None:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        return Stream(hidden, mask, self._summary(x, length), {"attn_mask": attn_mask})

    def block(self, i: int, stream: Stream) -> Stream:
        """Run transformer block ``i``; [B, L, D] in and out."""
        transformer = self.model.transformer
        attn_mask = stream.extras["attn_mask"]
        run = self.runs(run_resblock)
        hidden = run(transformer.resblocks[i], stream.hidden, batch_first(transformer), attn_mask)
        return stream.replace(hidden=hidden)

    def transformer_block(self, i: int) -> nn.Module:
        """open_clip's residual attention block ``i``."""
        return self.model.transformer.resblocks[i]

    def pool(self, stream: Stream) -> Tensor:
        """State at the summary position, normalised and projected, [B, out_dim]."""
        rows = torch.arange(stream.hidden.shape[0], device=stream.hidden.device)
        pooled = self.model.ln_final(stream.hidden[rows, stream.summary])
        projection = self.model.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    @property
    def pools_one_token(self) -> bool:
        """True for causal towers that pool the end-of-text token, which sees exactly the tokens of the mask."""
        at_end = self.model.cls_emb is None and self.model.pool_type in ("argmax", "eos")
        plain = self.causal and not self.model.use_pad_mask
        return at_end and plain and is_plain(self.model.transformer.resblocks[-1])

    def tokens(self, stream: Stream) -> Tensor:
        """[B, L, D] after the final norm."""
        return self.model.ln_final(stream.hidden)

    @property
    def joint_dim(self) -> int | None:
        """Width of the joint space, if the pooled token is projected by one linear map."""
        return self.out_dim if self.model.text_projection is not None else None

    def project(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, joint_dim], as the summary token is projected."""
        projection = self.model.text_projection
        return projection(tokens) if isinstance(projection, nn.Linear) else tokens @ projection

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool: tokens up to the end-of-text token if the tower pools it, otherwise all tokens but padding.

        A tower that pools its last position uses it as summary token even if it is padding, so it counts as real.
        """
        if self.model.cls_emb is None and self.model.pool_type in ("argmax", "eos"):
            return up_to(self._summary(ids, ids.shape[1]), ids.shape[1])
        mask = ids != self.pad_id
        if self.model.cls_emb is None and self.model.pool_type == "last":
            mask[:, -1] = True
        return mask

    def _summary(self, ids: Tensor, length: int) -> Tensor:
        pool_type = "last" if self.model.cls_emb is not None else self.model.pool_type
        if pool_type == "argmax":
            return ids.argmax(dim=-1)
        if pool_type == "eos":
            return (ids == self.model.eos_id).int().argmax(dim=-1)
        position = 0 if pool_type == "first" else length - 1
        return torch.full((ids.shape[0],), position, dtype=torch.int64, device=ids.device)


def text_half(model: CLIP) -> TextTransformer:
    """The text half of a plain ``CLIP`` as a ``TextTransformer`` that shares its weights.

    A plain ``CLIP`` holds its text modules directly, beside the vision tower. This function collects them in the
    module that open_clip uses for text, so that the text tower does not need the vision tower.
    """
    whole: Any = model  # its parts are attributes of a module: to a type checker they may be anything
    with shapes_only():
        text: Any = TextTransformer(
            context_length=whole.context_length,
            vocab_size=whole.vocab_size,
            width=whole.transformer.width,
            heads=1,
            layers=1,
            pool_type=whole.text_pool_type,
            eos_id=whole.text_eos_id,
            no_causal_mask=whole.attn_mask is None,
        )
    text.token_embedding = whole.token_embedding
    text.positional_embedding = whole.positional_embedding
    text.transformer = whole.transformer
    text.ln_final = whole.ln_final
    text.text_projection = None
    text.text_projection = whole.text_projection
    if whole.attn_mask is not None:
        text.attn_mask = whole.attn_mask
    text.output_dim = _projected_width(text)
    return text


def _projected_width(model: TextTransformer) -> int:
    projection = model.text_projection
    if projection is None:
        return model.transformer.width
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


# --- a residual attention block ---


def batch_first(transformer: Any) -> bool:
    """Whether the blocks of an open_clip transformer expect [B, L, D]; releases without the option always do."""
    return getattr(transformer, "batch_first", True)


def is_plain(block: nn.Module) -> bool:
    """Whether a block is open_clip's standard self-attention block; subclasses may differ."""
    return type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")


def run_resblock(block: nn.Module, hidden: Tensor, batch_first: bool, attn_mask: Tensor | None = None) -> Tensor:
    """Run one open_clip residual block on batch-first tokens [B, L, D].

    A plain block with frozen weights runs through :func:`_run_frozen`, which needs less time and memory for the same
    result.

    Args:
        block: the block.
        hidden: [B, L, D].
        batch_first: whether the block itself expects [B, L, D] (otherwise [L, B, D]).
        attn_mask: float, added to the attention scores: [L, L], open_clip's causal mask, or [B * heads, L, L], any
            mask; None = no mask.
    """
    causal = attn_mask is not None and attn_mask.ndim == 2
    if is_plain(block) and (attn_mask is None or causal):
        plain = cast(ResidualAttentionBlock, block)
        if _is_frozen(plain):
            return _run_frozen(plain, hidden, causal)
    if batch_first:
        return block(hidden, attn_mask=attn_mask)
    return block(hidden.transpose(0, 1), attn_mask=attn_mask).transpose(0, 1)


def _is_frozen(block: ResidualAttentionBlock) -> bool:
    # Compares the exact type, because LoRA replaces this module by its own.
    if type(block.attn) not in (nn.MultiheadAttention, StoredAttention):
        if type(block.attn).__module__.startswith("open_clip."):
            _say_slow(type(block.attn).__name__)
        return False
    return not any(p.requires_grad for p in block.parameters())


@cache
def _say_slow(kind: str) -> None:
    logger.warning(
        "open_clip's attention is %s instead of torch's MultiheadAttention: frozen blocks run open_clip's own forward, "
        "which needs more time and memory; the result is the same",
        kind,
    )


def _run_frozen(block: ResidualAttentionBlock, hidden: Tensor, causal: bool) -> Tensor:
    """Run the block; intermediate tensors are freed early or, without gradient, overwritten in place."""
    hidden = hidden + block.ls_1(_attend(block.attn, block.ln_1(hidden), causal))
    expand, activation, shrink = block.mlp
    inner = expand(block.ln_2(hidden))
    inner = activation(inner) if torch.is_grad_enabled() else _activate_in_place(activation, inner)
    return hidden + block.ls_2(shrink(inner))


def _attend(attention: nn.MultiheadAttention, x: Tensor, causal: bool) -> Tensor:
    """Self-attention, [B, L, D] in and out, equal to the module's own.

    The module transposes its input before the first product, which then runs as L small products that each read all
    weights: in the text tower of a ViT-B-32 with 11 texts that takes a third of the block's time.
    """
    qkv = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, width]
    mixed = scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def _activate_in_place(activation: nn.Module, x: Tensor) -> Tensor:
    """``activation(x)``, in place if possible, because ``x`` is the largest tensor of a block."""
    if type(activation) is nn.GELU:
        return torch.ops.aten.gelu_(x, approximate=activation.approximate)
    if type(activation) is QuickGELU:
        return x.mul_((1.702 * x).sigmoid_())
    return activation(x)
