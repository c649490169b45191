"""NLVR2 -> a prepared dataset for visual question answering: is a sentence true of a pair of images?

The two images of a pair are joined side by side, because the VQA models read one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Progress
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
    """Folder to write the prepared dataset and the joined images to."""
    partial: bool = False
    """Skip pairs of which an image is missing, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    source = nlvr2.read(config.sentences)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("join images")
        nlvr2.join_pairs(
            source,
            config.images,
            config.output,
            partial=config.partial,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(prepare(source, config.output, config.output / nlvr2.MEDIA, partial=config.partial).summary())


if __name__ == "__main__":
    run(main, Config)
