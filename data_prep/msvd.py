"""MSVD -> a prepared dataset for video retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import msvd
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare MSVD for video retrieval."""

    annotations: Path
    """raw-captions.pkl, AllVideoDescriptions.txt or video_corpus.csv, or the folder that holds it."""
    videos: Path
    """Folder with the clips (YouTubeClips)."""
    output: Path
    """Folder to write the prepared dataset to."""
    lists: Path | None = None
    """Folder with train_list.txt, val_list.txt and test_list.txt; default: beside the captions."""
    partial: bool = False
    """Skip missing clips, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = msvd.read(config.annotations, config.lists)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
