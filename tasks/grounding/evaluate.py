"""Measure a saved grounding adapter on a split of a prepared dataset.

python tasks/grounding/evaluate.py --model runs/grounding/… --data.root DIR --split testA --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.files import write_json
from vlkit.tasks.grounding.evaluate import find_split, metrics_of
from vlkit.tasks.grounding.task import TASK
from vlkit.tasks.load import load


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass
class Config:
    """Measure a saved grounding adapter."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate; test means testA and testB together if there is no split of that name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    json: Path | None = None
    """Write the metrics to this file."""


def main(config: Config) -> None:
    pipeline = load(config.model, config.device, task=TASK.name)
    dataset = TASK.dataset(config.data.root)
    records, found = find_split(pipeline.locator, dataset, config.split)
    metrics = metrics_of(records, found)
    images = len({record["image"] for record in records})
    table = Table(
        title=f"{pipeline.name}: {images} images, {len(records)} texts of {dataset.name}/{config.split}, percent"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    Console().print(table)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics})


if __name__ == "__main__":
    run(main, Config)
