"""Measure a saved grounding adapter on a split of a prepared dataset.

python tasks/grounding/evaluate.py --model runs/grounding/… --data.root DIR --split testA --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.files import write_json
from vlkit.metrics.coco import coco_metrics
from vlkit.tasks.after_training import AfterTraining, load_mixed, measure_others, other_datasets
from vlkit.tasks.grounding.evaluate import find_split, in_coco_form, metrics_of, records_of
from vlkit.tasks.grounding.pipeline import GroundingPipeline
from vlkit.tasks.grounding.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass(kw_only=True)
class Config(AfterTraining):
    """Measure a saved grounding adapter."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate; test means testA and testB together if there is no split of that name."""
    coco: Path | None = None
    """Also print COCO's average precision (pycocotools), and write the annotated and the found boxes to this folder as
    truth.json and results.json in COCO's format; each text counts as one image."""


def main(config: Config) -> None:
    dataset = TASK.dataset(config.data.root)
    others = other_datasets(config, TASK, config.split, records_of)
    pipeline = load_mixed(config.model, TASK.name, config)
    records, found = find_split(pipeline.locator, dataset, config.split)
    metrics = metrics_of(records, found)
    if config.coco:
        form = in_coco_form(records, found)
        metrics |= coco_metrics(form)
        write_json(config.coco / "truth.json", form.truth)
        write_json(config.coco / "results.json", form.results)
    images = len({record["image"] for record in records})
    table = Table(
        title=f"{pipeline.name}: {images} images, {len(records)} texts of {dataset.name}/{config.split}, percent"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    Console().print(table)
    also = measure_others(config.model, config, TASK, config.split, others, measure)
    if config.json:
        write_json(config.json, {"model": str(config.model), "split": config.split, **metrics, **also})


def measure(pipeline: GroundingPipeline, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a pipeline on a split."""
    return metrics_of(*find_split(pipeline.locator, dataset, split))


if __name__ == "__main__":
    run(main, Config)
