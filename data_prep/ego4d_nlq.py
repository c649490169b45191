"""Ego4D natural language queries -> a prepared dataset for moment retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import ego4d_nlq
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare Ego4D natural language queries for moment retrieval."""

    annotations: Path
    """Folder with nlq_train.json and nlq_val.json (or .jsonl in the form of QVHighlights)."""
    videos: Path
    """Folder with the clips (<clip_uid>.mp4)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip missing videos and wrong annotations, and list them in missing.txt and wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = ego4d_nlq.read(config.annotations)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
