"""VQA v2 -> a prepared dataset for visual question answering."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import vqav2
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare VQA v2 for visual question answering."""

    questions: list[Path]
    """v2_OpenEnded_mscoco_*_questions.json, one file per split."""
    images: Path
    """Folder that holds train2014/, val2014/ and test2015/ (or all images)."""
    output: Path
    """Folder to write the prepared dataset to."""
    annotations: list[Path] = field(default_factory=list)
    """v2_mscoco_*_annotations.json of the same splits; the test splits have none."""
    partial: bool = False
    """Skip questions whose image is missing, and list the images in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status("reading questions and answers"):
        source = vqav2.read(config.questions, config.annotations)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
