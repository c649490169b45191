"""A folder of your own captioned images -> a prepared dataset for retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.data.sources import folder
from vlkit.data.sources.named_splits import SplitShares
from vlkit.data.sources.prepare import prepare


@dataclass
class Config(SplitShares):
    """Prepare a folder of captioned images for retrieval."""

    folder: Path
    """Folder with the images, including sub-folders."""
    output: Path
    """Folder to write the prepared dataset to."""
    captions: Path | None = None
    """CSV, TSV, JSONL or JSON with image, captions and optionally split. Every column with a caption name (caption,
    caption2, text, title, ...) is read, the others are reported. Default: captions.* or metadata.* in the folder, else
    a .txt beside each image with one caption per line."""
    partial: bool = False
    """Skip missing images, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    source = folder.read(config.folder, config.captions, val=config.val, test=config.test, seed=config.seed)
    prepared = prepare(source, config.output, config.folder, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
