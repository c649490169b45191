"""open_clip's own vision transformer as a staged encoder."""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from vlkit.encoders.blocks.resblock import is_plain, run_resblock
from vlkit.encoders.staged import StagedEncoder, Stream


class ClipVision(StagedEncoder):
    """open_clip ``VisionTransformer``: [B, 3, H, W] images -> tokens [B, 1 + patches, D], class token first.

    Args:
        model: the tower. Towers without a single pooled vector (``pool_type="none"`` and no contrastive pooler) have
            no :meth:`pool`; :func:`vlkit.encoders.stage.stage_vision` refuses them.
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
            summary = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        return Stream(hidden, summary=summary)

    def block(self, i: int, stream: Stream) -> Stream:
        """Run transformer block ``i``; [B, L, D] in and out."""
        transformer = self.model.transformer
        return stream.replace(hidden=run_resblock(transformer.resblocks[i], stream.hidden, transformer.batch_first))

    def transformer_block(self, i: int) -> nn.Module:
        """open_clip's residual attention block ``i``."""
        return self.model.transformer.resblocks[i]

    def pool(self, stream: Stream) -> Tensor:
        """Pooled, normed and projected image embedding, [B, out_dim]."""
        pooled, _ = self.model._pool(stream.hidden)
        if self.model.proj is not None:
            pooled = pooled @ self.model.proj
        # A contrastive pooler has one query and keeps its axis: [B, 1, out_dim].
        return pooled.squeeze(1) if pooled.ndim == 3 else pooled

    @property
    def pools_one_token(self) -> bool:
        """True for towers that pool their class token and whose last block is open_clip's own."""
        return self._has_class_token_pool() and is_plain(self.model.transformer.resblocks[-1])

    def _has_class_token_pool(self) -> bool:
        return self.model.attn_pool is None and self.model.pool_type == "tok"

    def tokens(self, stream: Stream) -> Tensor:
        """[B, 1 + patches, D]: every token after the norm that stands before pooling."""
        pooler = self.model.attn_pool
        if pooler is not None and self.model.attn_pool_contrastive is None:
            return pooler.ln_k(stream.hidden)
        return self.model.ln_post(stream.hidden)

    def grid(self, stream: Stream) -> tuple[int, int]:
        """Rows and columns of the patches, which follow the class token."""
        rows, columns = self.model.grid_size
        return rows, columns
