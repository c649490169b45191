"""Parquet files or a Hugging Face dataset with images -> a prepared dataset for retrieval or classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Progress
from vlkit.data.sources.huggingface import MEDIA, read
from vlkit.data.sources.named_splits import SplitShares
from vlkit.data.sources.prepare import prepare


@dataclass
class Config(SplitShares):
    """Prepare Parquet files or a Hugging Face dataset with images."""

    rows: str
    """Parquet file, folder of Parquet files or one saved by save_to_disk, or hf:ORG/NAME (also hf:ORG/NAME@REVISION,
    hf:ORG/NAME:CONFIG) on the hub."""
    output: Path
    """Folder to write the prepared dataset and its images to."""
    task: Literal["retrieval", "classification"] = "retrieval"
    """What the dataset is for."""
    columns: str = ""
    """Which column holds what: image=COLUMN,texts=COLUMN,label=COLUMN,split=COLUMN,id=COLUMN; texts may be repeated.
    What is missing is guessed from names and types."""
    partial: bool = False
    """Skip rows that cannot be used, and list them in wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("write images")
        source = read(
            config.rows,
            config.task,
            config.output,
            config.columns,
            val=config.val,
            test=config.test,
            seed=config.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(prepare(source, config.output, config.output / MEDIA, partial=config.partial).summary())


if __name__ == "__main__":
    run(main, Config)
