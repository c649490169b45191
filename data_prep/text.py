"""Your own texts with labels -> a prepared dataset of texts.

python data_prep/text.py --train reviews.csv --output data/reviews
python data_prep/text.py --train train.jsonl --val dev.jsonl --test test.jsonl --output data/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.data.sources import text_files
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare texts, or pairs of texts, with labels."""

    train: Path
    """CSV or TSV with a header, JSONL, or JSON with the training texts. Given alone, it is divided into train, val and
    test, by its column split if it has one."""
    output: Path
    """Folder to write the prepared dataset to."""
    val: Path | None = None
    """File for validation."""
    test: Path | None = None
    """File for testing."""
    text: str | None = None
    """Column with the text; default: text, sentence, sentence1, premise, question, …"""
    text2: str | None = None
    """Column with the second text of pairs; default: text2, sentence2, hypothesis, …"""
    label: str | None = None
    """Column with the label; default: label, class, score, …"""
    kind: Literal["auto", "classification", "regression"] = "auto"
    """What the labels are; auto: regression if all are numbers and one has a decimal point."""
    word: str = "task"
    """Word that a text-to-text model reads before the texts."""
    val_share: float = 0.1
    """Share for validation of a file that is divided."""
    test_share: float = 0.1
    """Share for testing of a file that is divided."""
    seed: int = 0
    """Seed of the division."""


def main(config: Config) -> None:
    files = {"train": config.train, "val": config.val, "test": config.test}
    source = text_files.read(
        {split: path for split, path in files.items() if path is not None},
        text_files.Columns(config.text, config.text2, config.label),
        config.word,
        config.kind,
        val=config.val_share,
        test=config.test_share,
        seed=config.seed,
    )
    config.output.mkdir(parents=True, exist_ok=True)
    print(prepare(source, config.output, config.output).summary())


if __name__ == "__main__":
    run(main, Config)
