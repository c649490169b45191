"""Measure a saved classification adapter, or a base alone, on a split of a prepared dataset.

python tasks/classification/evaluate.py --model runs/classification/… --data.root DIR --split test --json metrics.json
python tasks/classification/evaluate.py --base ViT-B-32:openai --data.root DIR          # zero-shot
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError, some
from vlkit.files import write_json
from vlkit.tasks.classification.data import labels_of
from vlkit.tasks.classification.evaluate import confusion_of, metrics_of, score_records, write_confusion
from vlkit.tasks.classification.pipeline import ClassificationPipeline, zero_shot_pipeline
from vlkit.tasks.classification.prompts import PromptOptions, prompts_of
from vlkit.tasks.classification.task import TASK
from vlkit.tasks.load import load


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass
class Config:
    """Measure a saved classification adapter, or a base alone."""

    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Measure this base with class prompts instead, without an adapter."""
    prompts: PromptOptions = field(default_factory=PromptOptions)
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate."""
    confusion: Path | None = None
    """Draw the confusion matrix to this PNG, and write its counts to a CSV beside it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    json: Path | None = None
    """Write the metrics to this file."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.base is None):
            raise UserError("give either --model DIR (a saved adapter) or --base NAME (zero-shot)")
        if self.model is not None and (self.prompts.templates or self.prompts.file):
            raise UserError("--prompts: an adapter has its own class prompts; give --base NAME with other ones")


def main(config: Config) -> None:
    dataset = TASK.dataset(config.data.root, size="small")
    if config.model is not None:
        pipeline = load(config.model, config.device, task=TASK.name)
        check_classes(pipeline, dataset)
    else:
        pipeline = zero_shot_pipeline(config.base, prompts_of(dataset, config.prompts), config.device)
    records = dataset.records(config.split)
    labels = labels_of(dataset, records)
    scores = score_records(pipeline.labeller, dataset, records, f"{config.split} images")
    metrics = metrics_of(scores, labels)
    table = Table(title=f"{pipeline.name}: {len(records)} images of {dataset.name}/{config.split}, percent")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    console = Console()
    console.print(table)
    present = {record["label"] for record in records}
    if absent := [name for name in pipeline.classes if name not in present]:
        note = f"classes without an image in this split, not counted in mean_per_class: {some(absent)}"
        console.print(note, highlight=False, soft_wrap=True)
    if config.confusion:
        write_confusion(config.confusion, confusion_of(scores, labels), pipeline.classes)
    if config.json:
        write_json(config.json, {"model": str(config.model or config.base), "split": config.split, **metrics})


def check_classes(pipeline: ClassificationPipeline, dataset: Dataset) -> None:
    """Refuse a dataset whose classes are not those of the adapter, in the same order.

    Raises:
        UserError: names the first difference.
    """
    own, wanted = pipeline.classes, dataset.extra["classes"]
    if own != wanted:
        extra = [name for name in wanted if name not in own] or [name for name in own if name not in wanted]
        what = f"{some(extra)} are in only one of them" if extra else "their order differs"
        raise UserError(
            f"{dataset.root}: its {len(wanted)} classes are not the {len(own)} classes of {pipeline.name} ({what}); "
            "give the dataset that the adapter was trained for"
        )


if __name__ == "__main__":
    run(main, Config)
