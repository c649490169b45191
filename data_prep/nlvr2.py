"""NLVR2 -> a prepared dataset for visual question answering: is a sentence true of a pair of images?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.data.sources import nlvr2
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare NLVR2 for visual question answering."""

    sentences: list[Path]
    """Official files: train.json, dev.json, test1.json."""
    images: Path
    """Folder with the images (<pair>-img0.png and <pair>-img1.png, in the official sub-folders or without them)."""
    output: Path
    """Folder to write the prepared dataset to."""
    partial: bool = False
    """Leave out pairs of which an image is missing, and list these images in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    source = nlvr2.read(config.sentences)
    print(prepare(source, config.output, config.images, partial=config.partial).summary())


if __name__ == "__main__":
    run(main, Config)
