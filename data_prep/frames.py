"""Decode the clips of a prepared dataset once, into folders of JPEG frames that training and evaluation then use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import positional, run
from vlkit.data.manifest import Dataset
from vlkit.data.video.make_frames import make_frames
from vlkit.errors import UserError


@dataclass
class Config:
    """Decode every clip once. An interrupted run continues; exit code 2 if clips fail."""

    dataset: Path = positional()
    """The prepared dataset (the folder with dataset.json), of the task video_retrieval."""
    frames: int = 12
    """Frames per clip, evenly spaced."""
    size: int = 224
    """Short side of the frames in pixels; smaller clips keep their size."""
    workers: int = os.cpu_count() or 1
    """Processes that decode."""
    seconds: float = 180.0
    """Time limit per clip in seconds; a clip that takes longer fails."""


def main(config: Config) -> None:
    for name in ("frames", "size", "workers", "seconds"):
        if getattr(config, name) <= 0:
            raise UserError(f"--{name} {getattr(config, name)}: give more than 0")
    dataset = Dataset.open(config.dataset, "video_retrieval")
    made = make_frames(dataset, config.frames, config.size, config.workers, config.seconds)
    print(made.summary())
    if made.failed:
        fix = "fix them, or write a copy of the dataset without them by data_prep/check.py DIR --write_clean OTHER"
        raise UserError(f"{config.dataset}: {len(made.failed)} clips failed, listed in {made.failures_file}; {fix}")


if __name__ == "__main__":
    run(main, Config)
