"""Marking what two texts agree on: an objective of T5's encoder alone, with a label for every statement.

The label is read through the table of token embeddings, as a decoder's output is, from three sentinels; so the
objective has no weights of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlkit.drawn.agreement import Marked

WEIGHTS = (0.5, 1.0, 2.0)
"""Weights of the labels agreed, open and denied: most statements agree."""


class MarkedTexts(NamedTuple):
    """B pairs of texts with the labels of their statements."""

    ids: Tensor
    """[B, L] int64, padded with 0."""
    labels: Tensor
    """[B, L] int64: the label at the last token of a statement's words, -100 elsewhere."""

    def to(self, device: torch.device) -> MarkedTexts:
        """The same on a device."""
        return MarkedTexts(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate_marked(samples: list[Marked], tokenizer: PreTrainedTokenizerFast) -> MarkedTexts:
    """Tokens and labels of pairs."""
    rows = tokenizer([sample.source for sample in samples], return_offsets_mapping=True, padding=True)
    ids = torch.tensor(rows.input_ids)
    labels = torch.full_like(ids, -100)
    for number, (sample, offsets) in enumerate(zip(samples, rows["offset_mapping"], strict=True)):
        token_at = {end: place for place, (start, end) in enumerate(offsets) if end > start}
        for end, label in sample.marks:
            labels[number, token_at[end]] = label
    return MarkedTexts(ids, labels)


class Marker:
    """Labels of statements by a T5's encoder.

    Args:
        model: a ``T5ForConditionalGeneration``.
        tokenizer: of the T5, with its sentinels.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.sentinels = torch.tensor(tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(len(WEIGHTS))]))

    def logits(self, ids: Tensor) -> Tensor:
        """[B, L, 3] of texts [B, L]."""
        states = self.model.encoder(input_ids=ids, attention_mask=ids != 0).last_hidden_state
        table = self.model.shared.weight[self.sentinels.to(ids.device)]
        return states * states.shape[-1] ** -0.5 @ table.T

    def losses(self, texts: MarkedTexts) -> Tensor:
        """Weighted mean cross-entropy of each pair's statements, [B] float32."""
        weights = torch.tensor(WEIGHTS, device=texts.ids.device)
        logits = self.logits(texts.ids).float().flatten(0, 1)
        each = F.cross_entropy(logits, texts.labels.flatten(), weights, reduction="none").view_as(texts.labels)
        counted = (weights[texts.labels.clamp_min(0)] * (texts.labels >= 0)).sum(1)
        return each.sum(1) / counted

    def right(self, texts: MarkedTexts) -> Tensor:
        """Whether all statements of a pair have their label, [B] bool."""
        return ((self.logits(texts.ids).argmax(-1) == texts.labels) | (texts.labels < 0)).all(1)
