"""TVSum -> a prepared dataset for highlight detection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import tvsum
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare TVSum for highlight detection."""

    annotations: Path
    """tvsum_anno.json, or its folder."""
    videos: Path
    """Folder with the videos (<video>.mp4)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip missing videos and wrong annotations, and list them in missing.txt and wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = tvsum.read(config.annotations)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
