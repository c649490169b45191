"""Measure a saved question answerer on a split of a prepared dataset.

python tasks/vqa/evaluate.py --model runs/vqa/… --data.root DIR --split val --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.drawn.prepared import demo_dataset
from vlkit.files import write_json
from vlkit.tasks.load import load
from vlkit.tasks.vqa.data import answered
from vlkit.tasks.vqa.evaluate import predict_records, score


@dataclass
class Data:
    """What to measure on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""
    size: Literal["small", "medium", "large"] = "large"
    """Of the demo dataset."""
    style: Literal["plain", "drawn"] = "plain"
    """Of the demo dataset: the plain drawings that the embedded bases know, or hand-drawn ones that are new to them."""


@dataclass
class Config:
    """Measure a saved question answerer."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Which split; its answers must be known."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: Path | None = None
    """Write the metrics there."""


def main(config: Config) -> None:
    dataset = Dataset.open(config.data.root or demo_dataset("vqa", config.data.size, style=config.data.style), "vqa")
    records = answered(dataset, config.split)
    pipeline = load(config.model, config.device, task="vqa")
    metrics = score(records, predict_records(pipeline.answerer, dataset, records, f"{config.split} questions"))
    table = Table(title=f"{pipeline.name}: {len(records)} questions of {dataset.name}/{config.split}")
    table.add_column("metric")
    table.add_column("percent", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    Console().print(table)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics})


if __name__ == "__main__":
    run(main, Config)
