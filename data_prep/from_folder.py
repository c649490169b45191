"""A folder of your own captioned images -> a prepared dataset for retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.data.sources import folder
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare a folder of captioned images for retrieval."""

    folder: Path
    """Folder with the images; sub-folders are searched too."""
    output: Path
    """Folder to write the prepared dataset to."""
    captions: Path | None = None
    """CSV, TSV, JSONL or JSON with image and captions (and split, if you have your own); every column that is named as
    captions are (caption, caption2, text, title, ...) is read, the others are named; default: captions.* or
    metadata.* in the folder, else a .txt beside each image with a caption a line."""
    val: float = 0.1
    """Share of the images for validation."""
    test: float = 0.1
    """Share of the images for testing."""
    seed: int = 0
    """Another seed draws other splits."""
    partial: bool = False
    """Leave out images that are not there, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    source = folder.read(config.folder, config.captions, val=config.val, test=config.test, seed=config.seed)
    prepared = prepare(source, config.output, config.folder, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
