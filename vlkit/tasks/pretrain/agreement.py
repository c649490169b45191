"""Marking what two texts agree on: an objective of T5's encoder alone, with a label for every statement and a verdict
for every thing, and at the end token one for the pair.

Labels are read through the table of token embeddings, as a decoder's output is, from sentinels; so the objective has no
weights of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlkit.drawn.accounts import VERDICTS
from vlkit.drawn.agreement import Marked

WEIGHTS = (0.5, 1.0, 1.0, 2.0)
"""Weights of the labels agreed, left out, added and denied: most statements agree."""


def token_losses(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each token [B, M] float32, 0 where the target is -100."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), weights, reduction="none")
    return flat.view_as(target)


class MarkedTexts(NamedTuple):
    """B pairs of texts with the labels of their statements."""

    ids: Tensor
    """[B, L] int64, padded with 0."""
    labels: Tensor
    """[B, L] int64: the label at the last token of a statement's words, -100 elsewhere."""
    things: Tensor
    """[B, L] int64: the verdict on a thing at the last token of its word, -100 elsewhere."""
    verdicts: Tensor
    """[B] int64, the verdict on each pair."""

    def to(self, device: torch.device) -> MarkedTexts:
        """The same on a device."""
        return MarkedTexts(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate_marked(samples: list[Marked], tokenizer: PreTrainedTokenizerFast) -> MarkedTexts:
    """Tokens and labels of pairs."""
    rows = tokenizer([sample.source for sample in samples], return_offsets_mapping=True, padding=True)
    ids = torch.tensor(rows.input_ids)
    labels, things = torch.full_like(ids, -100), torch.full_like(ids, -100)
    for number, (sample, offsets) in enumerate(zip(samples, rows["offset_mapping"], strict=True)):
        token_at = {end: place for place, (start, end) in enumerate(offsets) if end > start}
        for found, marks in ((labels, sample.marks), (things, sample.things)):
            for end, label in marks:
                found[number, token_at[end]] = label
    return MarkedTexts(ids, labels, things, torch.tensor([sample.verdict for sample in samples]))


class Marker:
    """Labels of statements and verdicts on pairs by a T5's encoder.

    Args:
        model: a ``T5ForConditionalGeneration``.
        tokenizer: of the T5, with its sentinels: the first stand for labels, the next for verdicts.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        names = [f"<extra_id_{i}>" for i in range(len(WEIGHTS) + len(VERDICTS))]
        self.sentinels = torch.tensor(tokenizer.convert_tokens_to_ids(names))

    def logits(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of texts [B, L]: of the labels of each token [B, L, 4], and of its verdicts [B, L, 5]."""
        states = self.model.encoder(input_ids=ids, attention_mask=ids != 0).last_hidden_state
        states = states * states.shape[-1] ** -0.5
        labels, verdicts = self.model.shared.weight[self.sentinels.to(ids.device)].split((len(WEIGHTS), len(VERDICTS)))
        return states @ labels.T, states @ verdicts.T

    def losses(self, texts: MarkedTexts) -> Tensor:
        """Mean of three cross-entropies of each pair, [B] float32: of its statements (weighted), of its things, and of
        the pair.
        """
        weights = torch.tensor(WEIGHTS, device=texts.ids.device)
        labels, verdicts = self.logits(texts.ids)
        said = token_losses(labels, texts.labels, weights).sum(1)
        counted = (weights[texts.labels.clamp_min(0)] * (texts.labels >= 0)).sum(1).clamp_min(1e-6)
        things = token_losses(verdicts, texts.things).sum(1) / (texts.things >= 0).sum(1)
        pairs = F.cross_entropy(self._at_end(verdicts, texts.ids).float(), texts.verdicts, reduction="none")
        return (said / counted + things + pairs) / 3

    def right(self, texts: MarkedTexts) -> tuple[Tensor, Tensor]:
        """Whether all statements of a pair have their label, and whether its verdict is right, [B] bool each."""
        labels, verdicts = self.logits(texts.ids)
        every = ((labels.argmax(-1) == texts.labels) | (texts.labels < 0)).all(1)
        return every, self._at_end(verdicts, texts.ids).argmax(-1) == texts.verdicts

    @staticmethod
    def _at_end(logits: Tensor, ids: Tensor) -> Tensor:
        return logits[torch.arange(len(ids), device=ids.device), (ids != 0).sum(1) - 1]
