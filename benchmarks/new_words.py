"""How many words of the demo's captions are new to the embedded base, that is, in no caption of its pre-training.

    python benchmarks/new_words.py

The pre-training captions are a sample of an endless stream. Tokens are those of the base: a token that no caption of
pre-training has kept the embedding with which training began, but for weight decay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from vlkit.cli.config import run
from vlkit.data.manifest import Dataset
from vlkit.drawn.coco import tokens as words
from vlkit.drawn.prepared import demo_dataset
from vlkit.drawn.styled_samples import TRAIN, styled_sample
from vlkit.encoders.load import load_base
from vlkit.files import write_json

CAPTIONS = 12


@dataclass
class Config:
    """Share of new words in the demo's captions."""

    split: str = "test"
    """Split of the demo's retrieval data."""
    scenes: int = 2500
    """Pre-training scenes to read, each with twelve captions."""
    seed: int = 2024
    """Seed of the pre-training scenes (tasks/pretrain/train.py)."""
    json: Path | None = None
    """Also write the results to this JSON file."""


def main(config: Config) -> None:
    stream = (styled_sample(config.seed, TRAIN, index, captions=CAPTIONS) for index in range(config.scenes))
    before = [caption for sample in stream for caption in sample.captions]
    dataset = Dataset.open(demo_dataset("retrieval"), "retrieval")
    texts = [text for record in dataset.records(config.split) for text in record["texts"]]
    seen = {word for caption in before for word in words(caption)}
    captions = [words(text) for text in texts]
    new = [[word for word in caption if word not in seen] for caption in captions]
    base = load_base("tiny")
    ids = base.tokenize(texts)
    untrained = ~torch.isin(ids[base.text.real(ids)], base.tokenize(before))
    counts = Counter(word for caption in new for word in caption)
    found = {
        "seen words": len(seen),
        "new words": len(counts),
        "share of words": sum(counts.values()) / sum(map(len, captions)),
        "share of captions": sum(map(bool, new)) / len(captions),
        "share of tokens": untrained.float().mean().item(),
    }
    print(f"pre-training has {len(seen)} words; {len(counts)} others occur in the {config.split} captions of the demo:")
    print(f"{found['share of words']:.1%} of their words, in {found['share of captions']:.1%} of the captions")
    print(f"{found['share of tokens']:.1%} of their tokens are in no caption of pre-training")
    print("most frequent:", ", ".join(word for word, _ in counts.most_common(12)))
    if config.json:
        write_json(config.json, found)


if __name__ == "__main__":
    run(main, Config)
