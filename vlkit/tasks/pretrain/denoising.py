"""The objectives of the T5 base: span corruption, writing on from a prefix, and writing a text again in other words.

Span corruption (T5, section 3.1.4) asks for pieces of a few tokens. A decoder that has seen nothing else never wrote a
sentence, and captioning and text-to-text tasks ask a frozen one for sentences; prefix language modelling (T5, section
3.2.3; the S-denoiser of UL2) teaches that. Neither asks for
a word that the encoder has read, as captioning does. Writing one caption of a scene from another one asks for such
words (multi-task pre-training, T5, section 3.5.3).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vlkit.encoders.tiny import SENTINELS


class Denoising:
    """Collates pairs of texts that say the same into sources and their targets.

    Args:
        tokenizer: of the T5, with its sentinels.
        prefixes: share of the pairs, joined, that are cut in two at a random place: the source is the first part (it
            may be empty), the target the rest.
        rewrites: share of the pairs of which the longer text is the source and the other one the target. In the pairs
            that are left, joined, 15 % of the tokens, in spans of about three, become sentinels.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prefixes: float = 0.0, rewrites: float = 0.0) -> None:
        self.tokenizer, self.prefixes, self.rewrites = tokenizer, prefixes, rewrites
        self.sentinels: Any = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])

    def __call__(self, texts: list[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, L], their mask [B, L], and targets [B, M] with -100 as padding, all int64 but the mask (bool)."""
        return padded(self.pairs(texts))

    def pairs(self, texts: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The ids of each source and its target, with end tokens."""
        # The corruption is seeded by the texts, so it is the same in every process.
        joined = [" ".join(pair) for pair in texts]
        rng = np.random.default_rng(np.frombuffer("".join(joined).encode(), dtype=np.uint8)[:4096])
        pairs: list[tuple[list[int], list[int]]] = []
        for pair, text in zip(texts, joined, strict=True):
            draw = rng.random()
            if self.prefixes <= draw < self.prefixes + self.rewrites:
                longer, shorter = sorted(pair, key=len, reverse=True)
                pairs.append((self.tokenizer(longer).input_ids, self.tokenizer(shorter).input_ids))
                continue
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            pairs.append(self._cut(ids, rng) if draw < self.prefixes else self._corrupt(ids, rng))
        return pairs

    def _cut(self, ids: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
        end, place = cast(int, self.tokenizer.eos_token_id), int(rng.integers(len(ids)))
        return [*ids[:place], end], [*ids[place:], end]

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


def padded(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Sources [B, L] int64, their mask [B, L] bool, and targets [B, M] int64 with -100 as padding."""
    source, target = (
        nn.utils.rnn.pad_sequence([torch.tensor(pair[i]) for pair in pairs], True, fill)
        for i, fill in ((0, 0), (1, -100))
    )
    return source, source != 0, target
