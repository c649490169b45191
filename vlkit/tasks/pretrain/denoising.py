"""Span corruption (T5, section 3.1.4): 15 % of the tokens, in spans of about three, become sentinels."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vlkit.encoders.tiny import SENTINELS


class Denoising:
    """Collates texts into corrupted sources and their targets."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.sentinels: Any = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, L], their mask [B, L], and targets [B, M] with -100 as padding."""
        # The corruption is seeded by the texts, so it is the same in every process.
        rng = np.random.default_rng(np.frombuffer("".join(texts).encode(), dtype=np.uint8)[:4096])
        pairs = [self._corrupt(self.tokenizer(text, add_special_tokens=False).input_ids, rng) for text in texts]
        source, target = (
            nn.utils.rnn.pad_sequence([torch.tensor(p[i]) for p in pairs], True, v) for i, v in ((0, 0), (1, -100))
        )
        return source, source != 0, target

    def _corrupt(self, ids: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
        spans = max(1, round(len(ids) * 0.15 / 3))
        starts = np.sort(rng.choice(len(ids), spans, replace=False))
        source: list[int] = []
        target: list[int] = []
        position = 0
        for sentinel, start in zip(self.sentinels, starts, strict=False):
            if start < position:
                continue
            stop = min(len(ids), start + int(rng.integers(1, 6)))
            source += [*ids[position:start], sentinel]
            target += [sentinel, *ids[start:stop]]
            position = stop
        end = cast(int, self.tokenizer.eos_token_id)
        return [*source, *ids[position:], end], [*target, end]
