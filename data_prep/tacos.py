"""TACoS -> a prepared dataset for moment retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import tacos
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare TACoS for moment retrieval."""

    annotations: Path
    """Folder with train.jsonl, val.jsonl and test.jsonl (or .json with times in frames)."""
    videos: Path
    """Folder with the videos (<vid>-cam-002.mp4 or <vid>.mp4, any ending)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip missing videos and wrong annotations, and list them in missing.txt and wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = tacos.read(config.annotations)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
