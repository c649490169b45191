"""Measure a saved VQA adapter on a split of a prepared dataset.

python tasks/vqa/evaluate.py --model runs/vqa/… --data.root DIR --split val --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.files import write_json
from vlkit.tasks.load import load
from vlkit.tasks.vqa.data import answered, form_of, warn_of_unlabelled
from vlkit.tasks.vqa.evaluate import predict_records, score
from vlkit.tasks.vqa.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset."""
    style: Literal["drawn", "plain"] = "drawn"
    """Style of the demo dataset: plain drawings, known to the embedded bases, or hand-drawn ones, new to them."""


@dataclass
class Config:
    """Measure a saved VQA adapter."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate; it must have answers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    json: Path | None = None
    """Write the metrics to this file."""


def main(config: Config) -> None:
    dataset = TASK.dataset(config.data.root, size=config.data.size, style=config.data.style)
    records = answered(dataset, config.split)
    pipeline = load(config.model, config.device, task=TASK.name)
    if pipeline.answerer.vocabulary:
        warn_of_unlabelled(dataset, [config.split], pipeline.answerer.vocabulary)
    predictions = predict_records(pipeline.answerer, dataset, records, f"{config.split} questions")
    metrics = score(records, predictions, form_of(dataset))
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
