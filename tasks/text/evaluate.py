"""Measure a saved text adapter on a split of a prepared dataset.

python tasks/text/evaluate.py --model runs/text/… --data.root DIR --split test --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.data.text_task import task_of, text_records
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.after_training import AfterTraining, load_mixed, measure_others, other_datasets
from vlkit.tasks.text.data import TextSource, text_dataset
from vlkit.tasks.text.evaluate import evaluate_split
from vlkit.tasks.text.pipeline import TextPipeline
from vlkit.tasks.text.task import TASK


@dataclass(kw_only=True)
class Config(AfterTraining):
    """Measure a saved text adapter."""

    model: Path
    """Run or adapter folder."""
    data: TextSource = field(default_factory=TextSource)
    split: str = "test"
    """Split to evaluate; it must have labels."""


def main(config: Config) -> None:
    dataset = text_dataset(config.data.root, config.data.demo, config.data.size, config.data.style)
    records = text_records(dataset, config.split)
    others = other_datasets(config, TASK, config.split, text_records)
    pipeline = load_mixed(config.model, TASK.name, config)
    metrics = measure(pipeline, dataset, config.split)
    table = Table(title=f"{pipeline.name}: {len(records)} texts of {dataset.name}/{config.split}")
    table.add_column("metric")
    table.add_column("percent", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    Console().print(table)
    also = measure_others(config.model, config, TASK, config.split, others, measure)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics, **also})


def measure(pipeline: TextPipeline, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a pipeline on a split with labels.

    Raises:
        UserError: the dataset has other classes or fields than the adapter was trained for.
    """
    own, task = task_of(dataset), pipeline.task
    if (own.labels, len(own.fields)) != (task.labels, len(task.fields)):
        raise UserError(
            f"{dataset.root}: task {own.word!r} with labels {list(own.labels)}; {pipeline.name} was trained for "
            f"{task.word!r} with {list(task.labels)}; give a dataset of that task"
        )
    return evaluate_split(pipeline.labeller, dataset, split)


if __name__ == "__main__":
    run(main, Config)
