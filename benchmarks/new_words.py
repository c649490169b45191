"""How many words of the demo's captions are new to the embedded base, that is, in no caption of its pre-training.

python benchmarks/new_words.py
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.data.manifest import Dataset
from vlkit.drawn.prepared import demo_dataset
from vlkit.drawn.styled_samples import TRAIN, styled_sample
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
    seen: set[str] = set()
    for index in range(config.scenes):
        for caption in styled_sample(config.seed, TRAIN, index, captions=CAPTIONS).captions:
            seen.update(words(caption))
    dataset = Dataset.open(demo_dataset("retrieval"), "retrieval")
    captions = [words(text) for record in dataset.records(config.split) for text in record["texts"]]
    new = [[word for word in caption if word not in seen] for caption in captions]
    counts = Counter(word for caption in new for word in caption)
    found = {
        "seen words": len(seen),
        "new words": len(counts),
        "share of words": sum(counts.values()) / sum(map(len, captions)),
        "share of captions": sum(map(bool, new)) / len(captions),
    }
    print(f"pre-training has {len(seen)} words; {len(counts)} others occur in the {config.split} captions of the demo:")
    print(f"{found['share of words']:.1%} of their words, in {found['share of captions']:.1%} of the captions")
    print("most frequent:", ", ".join(word for word, _ in counts.most_common(12)))
    if config.json:
        write_json(config.json, found)


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    return re.findall(r"[a-z]+", caption.lower())


if __name__ == "__main__":
    run(main, Config)
