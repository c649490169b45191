"""QVHighlights -> a prepared dataset for moment retrieval and highlights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import qvhighlights
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare QVHighlights for moment retrieval and highlights."""

    annotations: Path
    """Folder with highlight_train_release.jsonl, highlight_val_release.jsonl and highlight_test_release.jsonl."""
    videos: Path
    """Folder with the videos (<vid>.mp4)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip missing videos and wrong annotations, and list them in missing.txt and wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = qvhighlights.read(config.annotations)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
