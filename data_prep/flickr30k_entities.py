"""Flickr30k Entities -> a prepared dataset for grounding phrases."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import flickr30k_entities, mdetr_phrases
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError


@dataclass
class Config:
    """Prepare Flickr30k Entities for grounding phrases."""

    images: Path
    """Folder with the images (flickr30k-images)."""
    output: Path
    """Folder to write the prepared dataset to."""
    annotations: Path | None = None
    """Folder of the release: train.txt, val.txt, test.txt, Sentences/ and Annotations/."""
    mdetr: list[Path] = field(default_factory=list)
    """MDETR's final_flickr_*_*.json, one file per split; instead of --annotations."""
    partial: bool = False
    """Skip phrases whose image is missing (listed in missing.txt) or whose box is impossible (listed in wrong.txt),
    instead of stopping."""


def main(config: Config) -> None:
    if (config.annotations is None) == (not config.mdetr):
        raise UserError("give either --annotations DIR or --mdetr FILE...")
    with Console(stderr=True).status(f"reading {config.annotations or 'phrases'}"):
        if config.annotations is None:
            source = mdetr_phrases.read(config.mdetr)
        else:
            source = flickr30k_entities.read(config.annotations)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
