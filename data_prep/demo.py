"""Write the demo world in the official formats of COCO, VQA v2, RefCOCO and MSR-VTT."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.drawn.make import make_world
from vlkit.drawn.preview import write_contact_sheet
from vlkit.drawn.world import COUNTS, Style

log = logging.getLogger(__name__)


@dataclass
class Config:
    """Write the demo world in the official formats of COCO, VQA v2, RefCOCO and MSR-VTT."""

    output: Path
    """Folder to write; it is created only when complete."""
    seed: int = 0
    """Seed: the same seed writes the same files; another seed draws other scenes with the same statistics."""
    size: Literal["small", "medium", "large"] = "medium"
    """Scenes (train/val/test): small 400/50/100, medium 2,000/200/500, large 10,000/500/1,000."""
    side: int = 96
    """Width and height of the images in pixels."""
    style: Style = "drawn"
    """drawn: hand-drawn on textured backgrounds, new to the embedded bases; plain: as in their pre-training, other
    scenes.
    """
    workers: int = os.cpu_count() or 1
    """Processes that draw; 0 = only the main process. The result does not depend on it."""
    preview: Path | None = None
    """Also write a contact sheet of both domains to this PNG."""


def main(config: Config) -> None:
    """Write the world, then print its contents."""
    if config.preview is not None:
        write_contact_sheet(config.preview, config.seed)
        log.info("contact sheet: %s", config.preview)
    make_world(config.output, config.seed, config.size, config.side, config.workers, style=config.style)
    for split, count in COUNTS[config.size].items():
        log.info("%s: %s images", split, f"{count:,}")
    log.info("demo world: %s", config.output)


if __name__ == "__main__":
    run(main, Config)
