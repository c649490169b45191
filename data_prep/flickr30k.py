"""Flickr30k captions -> a prepared dataset for retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import flickr30k
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare Flickr30k captions for retrieval."""

    annotations: Path
    """Karpathy file (dataset_flickr30k.json), results_20130124.token, or results.csv."""
    images: Path
    """Folder with the images (flickr30k-images)."""
    output: Path
    """Folder to write the prepared dataset to."""
    split: str = "train"
    """Split for all images of a token file or CSV (which name no splits) if --split_lists is not given."""
    split_lists: Path | None = None
    """Splits for a token file or CSV: folder with train.txt, val.txt, test.txt (one image per line), or a Karpathy
    file.
    """
    partial: bool = False
    """Skip missing images, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = flickr30k.read(config.annotations, split=config.split, split_lists=config.split_lists)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
