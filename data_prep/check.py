"""Check a prepared dataset: every record and every image or video. Exit code 2 when something is wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import positional, run
from vlkit.cli.show import visible
from vlkit.data.check import check_dataset, write_clean
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError
from vlkit.files import write_json


@dataclass
class Config:
    """Open every image or video of a prepared dataset and report problems by file and line."""

    dataset: Path = positional()
    """The prepared dataset (the folder with dataset.json)."""
    json: Path | None = None
    """Write the report to this file too."""
    write_clean: Path | None = None
    """Write a copy of the dataset without the bad records to this folder; then the exit code is 0."""
    workers: int = os.cpu_count() or 1
    """Files opened at the same time."""


def main(config: Config) -> None:
    if config.workers < 1:
        raise UserError(f"--workers {config.workers}: give 1 or more")
    report = check_dataset(Dataset.open(config.dataset), workers=config.workers)
    for problem in report.problems:
        print(visible(problem))
    if config.json:
        write_json(config.json, report.as_json())
    print(f"{report.records} records, {report.media} media opened, {len(report.problems)} problems")
    if config.write_clean:
        clean = write_clean(report, config.write_clean)
        kept = sum(entry["records"] for entry in clean.splits.values())
        print(visible(f"{kept} good records written to {clean.root}"))
    elif report.problems:
        fix = "fix them, or write a copy without them with --write_clean DIR"
        raise UserError(f"{config.dataset}: {len(report.problems)} problems, listed on standard output; {fix}")


if __name__ == "__main__":
    run(main, Config)
