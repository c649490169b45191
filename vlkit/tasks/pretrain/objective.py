"""Pre-training losses on styled scenes: images match captions, patch tokens of objects match their phrases."""

from __future__ import annotations

from typing import Any, Literal, cast

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.drawn.styled_samples import LEVELS, phrase_numbers, phrases
from vlkit.encoders.stage import stage_text
from vlkit.encoders.tiny import PREPROCESS, TinyTokenizer
from vlkit.engine.hardware import fast_bfloat16
from vlkit.tasks.pretrain.pool import Batch

Regions = Literal["none", "mean", "part"]
"""Patch tokens that represent an object: none, the mean of all that show it, or (for half of the objects) the mean of a
third of them."""
LEVEL_SHARES = torch.tensor((0.2, 0.2, 0.6))
THINGS = 2
"""Objects per image used in a step."""
REGION_SCALE = 20.0
"""Factor on the cosine between regions and phrases."""
PART = 0.35
LEAST = 0.75
"""Fewest patches that an object must cover to count."""


class Objective:
    """Pre-training losses of one base.

    Args:
        model: the open_clip base; its vision tower must have patch tokens.
        tokenizer: tokenizer of its texts.
        device: device of the model.
        regions: see :data:`Regions`.
        weight: weight of the region loss, relative to the contrastive loss.
    """

    def __init__(
        self, model: open_clip.CLIP, tokenizer: TinyTokenizer, device: torch.device, regions: Regions, weight: float
    ) -> None:
        self.model, self.device, self.regions, self.weight = model, device, regions, weight
        self.text_tower = stage_text(model)
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
        self.tables = {level: _trimmed(tokenizer(phrases(level))).to(device) for level in LEVELS}

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, 96, 96] (0 to 1) -> unit embeddings [B, D] and patch tokens [B, 64, W], both float32."""
        visual: Any = self.model.visual
        with fast_bfloat16(self.device):
            visual.output_tokens = True
            try:
                pooled, tokens = visual((pixels - self.mean) / self.std)
            finally:
                visual.output_tokens = False
        return F.normalize(pooled.float(), dim=-1), tokens.float()

    def texts(self, ids: Tensor) -> Tensor:
        """Ids [B, L] -> unit embeddings [B, D] float32."""
        with fast_bfloat16(self.device):
            # Trimming would wait for the GPU.
            return F.normalize(self.text_tower(ids if ids.is_cuda else _trimmed(ids)).float(), dim=-1)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch; its ``seed`` determines the detail of phrases and the sampled patches."""
        images, tokens = self.images(batch.images)
        texts = self.texts(batch.captions)
        logits = self.model.logit_scale.exp().clamp(max=100) * images @ texts.T
        target = torch.arange(len(logits), device=self.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if self.regions == "none":
            return loss
        return loss + self.weight * self.region_loss(tokens, batch)

    def region_loss(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Match objects' tokens to their phrases among all phrases of the batch: two objects per image, for fixed
        shapes.

        Nothing here waits for the device.
        """
        level = LEVELS[int(torch.multinomial(LEVEL_SHARES, 1, generator=torch.Generator().manual_seed(batch.seed)))]
        rng = torch.Generator(self.device).manual_seed(batch.seed)
        every = patch_weights(batch.ids, batch.codes.shape[1], tokens.shape[1])
        shown = (batch.codes >= 0) & (every.sum(-1) >= LEAST)
        order = torch.rand(shown.shape, generator=rng, device=self.device) + shown
        things = order.topk(THINGS, dim=1).indices
        shown, codes = shown.gather(1, things).flatten(), batch.codes.gather(1, things).flatten()
        weights = every.gather(1, things.unsqueeze(-1).expand(-1, -1, every.shape[2]))
        if self.regions == "part":
            weights = _part(weights, rng)
        pooled = (weights @ tokens / weights.sum(-1, keepdim=True).clamp(min=1e-3)).flatten(0, 1)
        numbers = phrase_numbers(codes.clamp(min=0), level)
        words = self.texts(self.tables[level][numbers])
        with fast_bfloat16(self.device):
            found = F.normalize((pooled @ cast(Tensor, self.model.visual.proj)).float(), dim=-1, eps=1e-6)
        logits = (REGION_SCALE * found @ words.T).masked_fill(~shown, -1e4)
        right = logits.masked_fill(numbers.unsqueeze(1) != numbers, -1e4)
        losses = logits.logsumexp(1) - right.logsumexp(1)
        return (losses * shown).sum() / shown.sum()


def patch_weights(ids: Tensor, things: int, patches: int) -> Tensor:
    """Share of each patch that each object covers: float32 [B, things, patches] from ids [B, h, w]."""
    side = round(patches**0.5)
    numbers = torch.arange(1, things + 1, device=ids.device).view(1, -1, 1, 1)
    return F.avg_pool2d((ids.unsqueeze(1) == numbers).float(), ids.shape[1] // side).flatten(2)


def _part(weights: Tensor, rng: torch.Generator) -> Tensor:
    """Keep only a third of the patches (at least one) for about half of the objects [B, things, patches]."""
    whole = torch.rand(weights.shape[:2], generator=rng, device=weights.device).unsqueeze(-1) < 0.5
    taken = weights * (torch.rand(weights.shape, generator=rng, device=weights.device) < PART)
    return torch.where(whole | (taken.sum(-1, keepdim=True) < 0.3), weights, taken)


def _trimmed(ids: Tensor) -> Tensor:
    """Remove columns that are padding in every row."""
    return ids[:, : int((ids != 0).sum(1).max())]
