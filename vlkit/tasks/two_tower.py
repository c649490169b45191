"""The two-tower model and its embedding heads: from encoder outputs to unit vectors in a joint space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import Encoded
from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError
from vlkit.tasks.gpo import GeneralizedPooling
from vlkit.tasks.gradient_cache import encode_twice

MAX_LOGIT_SCALE = math.log(100)


@dataclass
class HeadOptions:
    """Options of the head that turns an encoder's output into an embedding."""

    pool: Literal["base", "gpo", "mean"] = "base"
    """Pooling. base: the base's own; gpo: generalised pooling operator over tokens; mean: mean over tokens."""
    projection: bool = True
    """Train a linear map on the pooled embedding, initialised as the identity."""
    dim: int = 0
    """Width of the joint space for pool gpo and mean, and for a pair of encoders; 0 = the base's (512 for a pair)."""
    drop_tokens: float = 0.0
    """Share of the tokens that pool gpo and mean leave out in training, drawn for each sample and step (published for
    VSE-infinity: 0.2 of an image's cells)."""

    def __post_init__(self) -> None:
        if self.dim < 0:
            raise UserError(f"--head.dim {self.dim}: must be 0 (the base's) or a width")
        if not 0 <= self.drop_tokens < 1:
            raise UserError(f"--head.drop_tokens {self.drop_tokens}: must be at least 0 and less than 1")
        if self.drop_tokens and self.pool == "base":
            raise UserError("--head.drop_tokens: the base's own pooling reads every token; add --head.pool gpo or mean")


class EmbeddingHead(nn.Module):
    """Pool and project: :class:`Encoded` -> [B, E], unit norm.

    Args:
        encoder: the tower (for its widths).
        options: see :class:`HeadOptions`.
        joint_dim: width of the joint space of a pair of encoders; None = the pooled output is already in one.

    Raises:
        UserError: a pair without projections.
    """

    def __init__(self, encoder: StagedEncoder, options: HeadOptions, joint_dim: int | None = None) -> None:
        super().__init__()
        self.pool, self.drop_tokens = options.pool, options.drop_tokens
        if joint_dim is not None and not options.projection:
            raise UserError(
                "--head.projection false: a pair of encoders has no joint space without projections; keep them, or "
                "give a base with a joint space"
            )
        adjusts = options.pool == "base" and joint_dim is None
        self.out_dim = encoder.out_dim if adjusts else options.dim or joint_dim or encoder.out_dim
        if adjusts:
            self.projection = nn.Linear(self.out_dim, self.out_dim, bias=False) if options.projection else nn.Identity()
            if options.projection:
                nn.init.eye_(cast(Tensor, self.projection.weight))
                self.starts_at_base = ("projection.weight",)  # scaled with the adapter (vlkit.adapters.mix)
        else:
            width = encoder.out_dim if options.pool == "base" else encoder.token_dim
            self.projection = nn.Linear(width, self.out_dim)
            nn.init.xavier_uniform_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.gpo = GeneralizedPooling() if options.pool == "gpo" else None

    def forward(self, encoded: Encoded) -> Tensor:
        """[B, E] float, unit norm."""
        return F.normalize(self.features(encoded), dim=-1)

    def features(self, encoded: Encoded) -> Tensor:
        """[B, E] float, before normalisation."""
        if self.pool == "base":
            return self.projection(encoded.pooled)
        tokens, mask = self.projection(encoded.tokens), encoded.mask
        if self.training and self.drop_tokens:
            mask = some_of(tokens, mask, self.drop_tokens)
        if self.gpo is not None:
            return self.gpo(tokens, mask)
        return masked_mean(tokens, mask)


def some_of(tokens: Tensor, mask: Tensor | None, dropped: float) -> Tensor:
    """A random part of the real tokens, at least one of each sample: [B, L, D] and bool [B, L] (None = all real) ->
    bool [B, L].
    """
    draw = torch.rand(tokens.shape[:2], device=tokens.device)
    if mask is not None:
        draw = draw.masked_fill(~mask, -1)
    return draw >= draw.amax(1, keepdim=True).clamp(max=dropped)


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens: [B, L, D] and bool [B, L] (None = all real) -> [B, D]."""
    if mask is None:
        return tokens.mean(1)
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)


class TwoTower(nn.Module):
    """Two adapted encoders with a joint space, trained and served by image-text retrieval.

    Args:
        image, text: adapted encoders (``forward(x) -> Encoded``).
        image_head, text_head: heads that map into the joint space.
        logit_scale: log of the factor on the cosine, initialised from the base; trainable.
        logit_bias: bias of the scaled cosine (sigmoid losses); trainable.
    """

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        image_head: EmbeddingHead,
        text_head: EmbeddingHead,
        logit_scale: float,
        logit_bias: float,
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.image_head, self.text_head = image_head, text_head
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))
        self.logit_bias = nn.Parameter(torch.tensor(float(logit_bias)))

    @property
    def out_dim(self) -> int:
        """Width E of the joint space."""
        return self.image_head.out_dim

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, E] float32, unit norm."""
        return self.image_head(self.image(pixels)).float()

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] int64 -> [B, E] float32, unit norm."""
        return self.text_head(self.text(ids)).float()

    def forward(self, pixels: Tensor, ids: Tensor, chunk: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings [B, E] of images and texts, and two scalars: the factor on their cosine (at most 100) and its
        bias.

        ``chunk`` is the number of pairs encoded at once (:mod:`vlkit.tasks.gradient_cache`); 0 = all.
        """
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        if not 0 < chunk < len(pixels):
            return *self._embed(pixels, ids), scale, self.logit_bias
        parts = zip(pixels.split(chunk), map(self._trimmed, ids.split(chunk)), strict=True)
        embedded = [encode_twice(self._embed, *part, anchor=self.logit_scale) for part in parts]
        images, texts = (torch.cat(side) for side in zip(*embedded, strict=True))
        return images, texts, scale, self.logit_bias

    def _trimmed(self, ids: Tensor) -> Tensor:
        """Ids of a chunk without columns that only other chunks use; cached taps as they are."""
        trim = getattr(getattr(self.text, "base", None), "trim", None)
        return trim(ids) if trim and isinstance(ids, Tensor) else ids

    def _embed(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed_images(pixels), self.embed_texts(ids)
