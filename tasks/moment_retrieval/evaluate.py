"""Measure a saved adapter on a split of a prepared dataset.

python tasks/moment_retrieval/evaluate.py --model runs/moment_retrieval/… --data.root DIR --split val --json FILE
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.files import write_json
from vlkit.tasks.load import load
from vlkit.tasks.moment_retrieval.data import MomentExamples
from vlkit.tasks.moment_retrieval.evaluate import evaluate_split
from vlkit.tasks.moment_retrieval.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass
class Config:
    """Measure a saved adapter on moments and highlights."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    json: Path | None = None
    """Write the metrics to this file."""


def main(config: Config) -> None:
    pipeline = load(config.model, config.device, task=TASK.name)
    dataset = TASK.dataset(config.data.root)
    examples = MomentExamples(dataset, config.split, pipeline.reader)
    pipeline.check_annotation(examples.annotation, dataset.root)
    metrics = evaluate_split(pipeline.finder, examples)
    videos = len({record["video"] for record in examples.records})
    title = f"{pipeline.name}: {videos} videos, {len(examples)} queries of {dataset.name}/{config.split}, percent"
    table = Table(title=title)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    Console().print(table)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics})


if __name__ == "__main__":
    run(main, Config)
