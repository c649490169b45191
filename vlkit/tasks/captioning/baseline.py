"""A baseline without training: captions of the nearest training images (Devlin et al., 2015)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.data.images import image_batches, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.metrics.caption_text import caption_words
from vlkit.metrics.captions import caption_metrics, ngrams

NEIGHBOURS = 10
"""Nearest images whose captions vote."""


def nearest_metrics(
    base: ClipBase, dataset: Dataset, train: str, test: str, device: torch.device
) -> tuple[str, dict[str, float]]:
    """The better of two baselines by CIDEr, with its name: the consensus caption of the nearest training image, or of
    the ten nearest.

    Args:
        base: images are compared by its pooled embedding.
        dataset: the dataset.
        train, test: splits to copy captions from, and to measure on.
        device: to compute on; the base is there.
    """
    known, asked = dataset.records(train), dataset.records(test)
    near = _embed(base, dataset, asked, device) @ _embed(base, dataset, known, device).T
    order = near.topk(min(NEIGHBOURS, len(known)), dim=1).indices.tolist()
    found = {}
    for count in (1, NEIGHBOURS):
        captions = [consensus([text for i in row[:count] for text in known[i]["texts"]]) for row in order]
        metrics = caption_metrics(captions, [record["texts"] for record in asked])
        found["nearest image" if count == 1 else f"{count} nearest images"] = metrics
    return max(found.items(), key=lambda pair: pair[1]["cider"])


def consensus(texts: Sequence[str]) -> str:
    """The text that shares most words and pairs of words with all texts (mean F1); the first of several."""
    counted = [ngrams(words, 1) | ngrams(words, 2) for words in map(caption_words, texts)]

    def shared(one: Counter[tuple[str, ...]]) -> float:
        totals = (one.total() + other.total() for other in counted)
        return sum(2 * (one & other).total() / max(1, total) for other, total in zip(counted, totals, strict=True))

    return max(zip(texts, counted, strict=True), key=lambda pair: shared(pair[1]))[0]


@torch.no_grad()
def _embed(base: ClipBase, dataset: Dataset, records: Sequence[Record], device: torch.device) -> Tensor:
    """[n, E] float32 on the CPU, unit norm."""
    transform, tower = image_transform(base.preprocess), base.image
    weight = next(tower.parameters())
    rows = []
    for pixels in image_batches(list(records), lambda record: transform(read_image(dataset, record)), 64):
        rows.append(F.normalize(tower(pixels.to(device, weight.dtype)).float().cpu(), dim=-1))
    return torch.cat(rows)
