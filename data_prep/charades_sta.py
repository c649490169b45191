"""Charades-STA -> a prepared dataset for moment retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import charades_sta
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare Charades-STA for moment retrieval."""

    annotations: Path
    """Folder with charades_sta_train.txt and charades_sta_test.txt, and perhaps Charades_v1_*.csv."""
    videos: Path
    """Folder with the videos (Charades_v1_480/<video>.mp4)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip missing videos and wrong annotations, and list them in missing.txt and wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = charades_sta.read(config.annotations)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
