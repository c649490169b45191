"""Measure a saved captioning adapter on a split of a prepared dataset.

python tasks/captioning/evaluate.py --model runs/captioning/… --data.root DIR --split test --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.files import write_json
from vlkit.tasks.after_training import AfterTraining, load_mixed, measure_others, other_datasets
from vlkit.tasks.captioning.evaluate import evaluate_split
from vlkit.tasks.captioning.pipeline import CaptioningPipeline
from vlkit.tasks.captioning.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset for retrieval (images with captions), Parquet files, or a Hugging Face dataset (folder,
    hf:ORG/NAME); default: the demo dataset."""
    columns: str = ""
    """Columns of rows: image=COLUMN,texts=COLUMN,split=COLUMN; guessed from names and types if left out."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset."""
    style: Literal["plain", "drawn"] = "plain"
    """Style of the demo dataset: plain drawings, known to the embedded bases, or hand-drawn ones, new to them."""


@dataclass(kw_only=True)
class Config(AfterTraining):
    """Measure a saved captioning adapter."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate."""
    java: bool = False
    """The official evaluation: words of its tokenizer, METEOR and SPICE. Needs Java and pip install
    'vlkit[captions]'."""


def main(config: Config) -> None:
    dataset = TASK.dataset(config.data.root, config.data.columns, size=config.data.size, style=config.data.style)
    records = dataset.records(config.split)
    others = other_datasets(config, TASK, config.split)
    pipeline = load_mixed(config.model, TASK.name, config)
    measured = partial(measure, java=config.java)
    metrics = measured(pipeline, dataset, config.split)
    table = Table(title=f"{pipeline.name}: {len(records)} images of {dataset.name}/{config.split}")
    table.add_column("metric")
    table.add_column("percent", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    console = Console()
    console.print(table)
    if not config.java:
        console.print("words by vlkit's own tokenizer: official figures (--java true) differ in the second decimal")
    also = measure_others(config.model, config, TASK, config.split, others, measured)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics, **also})


def measure(pipeline: CaptioningPipeline, dataset: Dataset, split: str, java: bool = False) -> dict[str, float]:
    """Metrics of a pipeline on a split."""
    return evaluate_split(pipeline.captioner, dataset, split, java)


if __name__ == "__main__":
    run(main, Config)
