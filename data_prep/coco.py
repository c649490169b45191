"""COCO captions -> a prepared dataset for retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import coco
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare COCO captions for retrieval."""

    annotations: Path
    """Karpathy file (dataset_coco.json), or a folder of captions_*.json, or one such file."""
    images: Path
    """Folder that holds train2014/ and val2014/ (or train2017/ and val2017/)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Skip missing images, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = coco.read(config.annotations)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
