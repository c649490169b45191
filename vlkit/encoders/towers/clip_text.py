"""open_clip's own text transformer as a staged encoder (also the text half of a plain ``CLIP``)."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from vlkit.encoders.blocks.resblock import is_plain, run_resblock
from vlkit.encoders.staged import Stream
from vlkit.encoders.towers.text import TextEncoder, up_to


class ClipText(TextEncoder):
    """open_clip ``TextTransformer``: ids [B, L] int64 -> tokens [B, L, D] (CoCa: one more,
    its class token, at the end).

    ``L`` may be shorter than the context length: positions and the causal mask are cut to fit.

    Args:
        model: the tower. Towers with ``pool_type="none"`` have no pooled embedding;
            :func:`vlkit.encoders.stage.stage_text` refuses them.
        pad_id: id of the tokenizer's padding; default: what the tower says. Only :meth:`real` uses it.
    """

    pad_id: int

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
        # A class token at the end, or pooling the last position, reads the position itself: cutting would move it.
        self.trimmable = padding_unseen and model.cls_emb is None and model.pool_type != "last"

    def embed(self, x: Tensor) -> Stream:
        """Ids [B, L] -> stream with hidden [B, L, D], its mask of real tokens and the position that is pooled."""
        hidden, attn_mask = self.model._embeds(x)
        length = hidden.shape[1]
        if attn_mask is not None and attn_mask.ndim == 2:
            attn_mask = attn_mask[:length, :length]
        mask = self.real(x)
        if self.model.cls_emb is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return Stream(hidden, mask, self._summary(x, length), {"attn_mask": attn_mask})

    def block(self, i: int, stream: Stream) -> Stream:
        """Run transformer block ``i``; [B, L, D] in and out."""
        transformer = self.model.transformer
        attn_mask = stream.extras["attn_mask"]
        hidden = run_resblock(transformer.resblocks[i], stream.hidden, transformer.batch_first, attn_mask)
        return stream.replace(hidden=hidden)

    def transformer_block(self, i: int) -> nn.Module:
        """open_clip's residual attention block ``i``."""
        return self.model.transformer.resblocks[i]

    def pool(self, stream: Stream) -> Tensor:
        """State at the summary position, normed and projected, [B, out_dim]."""
        rows = torch.arange(len(stream.hidden), device=stream.hidden.device)
        pooled = self.model.ln_final(stream.hidden[rows, stream.summary])
        projection = self.model.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    @property
    def pools_one_token(self) -> bool:
        """True for causal towers that pool the end of text: it sees the tokens up to itself, as the mask says."""
        at_end = self.model.cls_emb is None and self.model.pool_type in ("argmax", "eos")
        plain = self.causal and not self.model.use_pad_mask
        return at_end and plain and is_plain(self.model.transformer.resblocks[-1])

    def tokens(self, stream: Stream) -> Tensor:
        """[B, L, D] after the final norm."""
        return self.model.ln_final(stream.hidden)

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool: up to the end-of-text token where the tower pools it, else all that is not padding.

        A tower that pools its last position sees padding there and sums the text up in it, so that one counts as real.
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
        return torch.full((len(ids),), position, dtype=torch.int64, device=ids.device)


def text_half(model: CLIP) -> TextTransformer:
    """The text half of a plain ``CLIP`` as a ``TextTransformer`` that shares its weights.

    A plain ``CLIP`` keeps its text modules on itself, beside the vision tower; this gathers them in the module
    open_clip itself uses for text, so that a text tower can live without the vision tower.
    """
    parts: Any = model
    with torch.device("meta"):
        text = TextTransformer(
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            width=model.transformer.width,
            heads=1,
            layers=1,
            pool_type=parts.text_pool_type,
            eos_id=parts.text_eos_id,
            no_causal_mask=model.attn_mask is None,
        )
    text.token_embedding = parts.token_embedding
    text.positional_embedding = parts.positional_embedding
    text.transformer = model.transformer
    text.ln_final = parts.ln_final
    text.text_projection = None
    text.text_projection = parts.text_projection
    if model.attn_mask is not None:
        text.attn_mask = parts.attn_mask
    text.output_dim = _projected_width(text)
    return text


def _projected_width(model: TextTransformer) -> int:
    projection = model.text_projection
    if projection is None:
        return model.transformer.width
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
