"""Measure a saved adapter on a split of a prepared dataset.

python tasks/moment_retrieval/evaluate.py --model runs/moment_retrieval/… --data.root DIR --split val --json FILE
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.files import write_json
from vlkit.tasks.after_training import AfterTraining, load_mixed, measure_others, other_datasets
from vlkit.tasks.moment_retrieval.data import MomentExamples
from vlkit.tasks.moment_retrieval.evaluate import evaluate_split
from vlkit.tasks.moment_retrieval.pipeline import MomentPipeline
from vlkit.tasks.moment_retrieval.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass(kw_only=True)
class Config(AfterTraining):
    """Measure a saved adapter on moments and highlights."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate."""


def main(config: Config) -> None:
    dataset = TASK.dataset(config.data.root)
    others = other_datasets(config, TASK, config.split)
    pipeline = load_mixed(config.model, TASK.name, config)
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
    also = measure_others(config.model, config, TASK, config.split, others, measure)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics, **also})


def measure(pipeline: MomentPipeline, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a pipeline on a split."""
    examples = MomentExamples(dataset, split, pipeline.reader)
    pipeline.check_annotation(examples.annotation, dataset.root)
    return evaluate_split(pipeline.finder, examples)


if __name__ == "__main__":
    run(main, Config)
