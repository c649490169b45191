"""YouTube Highlights -> a prepared dataset for highlight detection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import youtube_highlights
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare YouTube Highlights for highlight detection."""

    annotations: Path
    """youtube_anno.json, or its folder."""
    videos: Path
    """Folder with the videos (<video>.mp4)."""
    output: Path
    """Folder to write the prepared dataset to."""
    splits: Path | None = None
    """JSON {domain: {"train": [videos], "val": [videos]}}; default: every third video of a domain validates."""
    partial: bool = False
    """Skip missing videos and wrong annotations, and list them in missing.txt and wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = youtube_highlights.read(config.annotations, config.splits)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
