"""Flickr30k Entities -> a prepared dataset for grounding phrases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import flickr30k_entities
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare Flickr30k Entities for grounding phrases."""

    annotations: Path
    """Folder of the release: train.txt, val.txt, test.txt, Sentences/ and Annotations/."""
    images: Path
    """Folder with the images (flickr30k-images)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip phrases whose image is missing (listed in missing.txt) or whose box is impossible (listed in wrong.txt),
    instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = flickr30k_entities.read(config.annotations)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
