"""GQA -> a prepared dataset for visual question answering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import gqa
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare GQA for visual question answering."""

    questions: list[Path]
    """*_balanced_questions.json, one file per split; for a split in several files (train_all) their folder."""
    images: Path
    """Folder with the images (<imageId>.jpg, or images/ below it)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip questions whose image is missing, and list the images in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status("reading questions"):
        source = gqa.read(config.questions)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
