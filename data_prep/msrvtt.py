"""MSR-VTT -> a prepared dataset for video retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import msrvtt
from vlkit.data.sources.prepare import prepare


@dataclass
class Config:
    """Prepare MSR-VTT for video retrieval."""

    annotations: Path
    """MSRVTT_data.json."""
    videos: Path
    """Folder with the clips (video0.mp4 or video0.webm, ...)."""
    output: Path
    """Folder to write the prepared dataset to."""
    csv: Path | None = None
    """Folder with MSRVTT_train.9k.csv, MSRVTT_train.7k.csv and MSRVTT_JSFUSION_test.csv; default: beside the JSON."""
    split: Literal["9k", "7k", "full"] = "9k"
    """9k, 7k: that training list, and the 1k-A test split with one sentence per clip; full: the official splits."""
    partial: bool = False
    """Skip missing clips, and list them in missing.txt, instead of stopping."""


def main(config: Config) -> None:
    with Console(stderr=True).status(f"reading {config.annotations}"):
        source = msrvtt.read(config.annotations, config.csv, config.split)
        prepared = prepare(source, config.output, config.videos, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
