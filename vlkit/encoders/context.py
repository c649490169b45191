"""Longer or shorter texts than a base was trained on: resize the position embeddings of its text tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vlkit.encoders.bases import ClipBase, fingerprint
from vlkit.encoders.towers.hf_contrastive import HfClipText, SiglipText
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.open_clip import ClipText
from vlkit.errors import UserError

LEAST = 3
"""Start, one word, end."""


@torch.no_grad()
def set_context_length(base: ClipBase, length: int) -> None:
    """Make the text tower and the tokenizer of ``base`` read ``length`` tokens; the identity records it.

    Learned absolute position embeddings are resized (:func:`resized`). A transformers encoder in a pair keeps its own
    and reads at most as many tokens as it has positions for.

    Args:
        base: the base, changed in place.
        length: tokens per text, including start and end.

    Raises:
        UserError: the tower does not allow this length.
    """
    if length < LEAST:
        raise UserError(f"context length {length}: must be at least {LEAST} tokens")
    tower: Any = base.text
    if isinstance(tower, ClipText):
        _resize_open_clip(tower.model, length)
    elif isinstance(tower, HfClipText | SiglipText):
        _resize_transformers(tower.tower, length, tower.causal)
    else:
        most = _most_positions(tower)
        if most is not None and length > most:
            raise UserError(f"context length {length}: the text tower of {base.name} has {most} positions; give fewer")
    tokenize: Any = base.tokenize
    tokenize.context_length = length
    base.identity["text"] |= {"context_length": length, "fingerprint": fingerprint(tower.model)}


def resized(positions: Tensor, length: int, causal: bool) -> Tensor:
    """Position embeddings [L, D] for ``length`` positions.

    A causal tower keeps its first positions when it is shortened, so that short texts are embedded as before. Otherwise
    the embeddings are interpolated along a line, as open_clip does it.
    """
    if causal and length <= len(positions):
        return positions[:length].clone()
    return interpolate(positions.T[None], size=length, mode="linear", align_corners=False)[0].T.contiguous()


def _resize_open_clip(model: Any, length: int) -> None:
    if model.cls_emb is not None:
        raise UserError("context length: the text tower ends with a class token (CoCa), whose position is fixed")
    causal = model.attn_mask is not None
    model.positional_embedding = nn.Parameter(resized(model.positional_embedding.detach(), length, causal))
    model.context_length = model.num_pos = length
    if causal:
        model.attn_mask = model.build_causal_mask().to(model.positional_embedding.device)


def _resize_transformers(tower: Any, length: int, causal: bool) -> None:
    parts = tower.embeddings
    positions = resized(parts.position_embedding.weight.detach(), length, causal)
    parts.position_embedding = nn.Embedding.from_pretrained(positions, freeze=False)
    parts.position_ids = torch.arange(length, device=positions.device).expand(1, -1)
    tower.config.max_position_embeddings = length


def _most_positions(tower: HfText) -> int | None:
    """Tokens that a transformers encoder can read; None = any number (relative positions)."""
    config = tower.trunk.config
    most = getattr(config, "max_position_embeddings", None)
    # RoBERTa numbers positions from the padding id on.
    return most - 2 if most is not None and config.model_type in ("roberta", "xlm-roberta", "mpnet") else most
