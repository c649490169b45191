"""Measure a saved classification adapter, or a base alone, on a split of a prepared dataset.

python tasks/classification/evaluate.py --model runs/classification/… --data.root DIR --split test --json metrics.json
python tasks/classification/evaluate.py --base ViT-B-32:openai --data.root DIR          # zero-shot
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError, some
from vlkit.files import write_json
from vlkit.tasks.after_training import (
    AfterTraining,
    load_mixed,
    measure_others,
    other_datasets,
    refuse_without_model,
)
from vlkit.tasks.classification.data import labels_of
from vlkit.tasks.classification.dataset import Demo, classification_dataset
from vlkit.tasks.classification.evaluate import (
    confusion_of,
    feature_records,
    metrics_of,
    score_records,
    write_confusion,
)
from vlkit.tasks.classification.pipeline import ClassificationPipeline, zero_shot_pipeline
from vlkit.tasks.classification.prompts import PromptOptions, prompts_of
from vlkit.tasks.classification.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset, Parquet files, or a Hugging Face dataset (folder, hf:ORG/NAME); default: the demo dataset."""
    demo: Demo = "kinds"
    """Demo dataset: kinds (drawn things in a style new to the base), or dark (the same images at half the exposure)."""
    columns: str = ""
    """Columns of rows: image=COLUMN,label=COLUMN,split=COLUMN; guessed from names and types if left out."""


@dataclass(kw_only=True)
class Config(AfterTraining):
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

    def __post_init__(self) -> None:
        if (self.model is None) == (self.base is None):
            raise UserError("give either --model DIR (a saved adapter) or --base NAME (zero-shot)")
        if self.model is None:
            refuse_without_model(self)
        elif self.prompts.templates or self.prompts.file:
            raise UserError("--prompts: an adapter has its own class prompts; give --base NAME with other ones")


def main(config: Config) -> None:
    dataset = classification_dataset(config.data.root, config.data.demo, config.data.columns)
    others = other_datasets(config, TASK, config.split)
    if config.model is not None:
        pipeline = load_mixed(config.model, TASK.name, config)
        check_classes(pipeline, dataset)
    else:
        assert config.base is not None  # checked in __post_init__
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
    also = measure_others(config.model, config, TASK, config.split, others, measure) if config.model else {}
    if config.json:
        about = {"model": str(config.model or config.base), "split": config.split}
        write_json(config.json, {**about, **metrics, **also})


def measure(pipeline: ClassificationPipeline, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a pipeline on a split; other classes than its own are told apart by their prompts."""
    records = dataset.records(split)
    if pipeline.classes == dataset.extra["classes"]:
        scores = score_records(pipeline.labeller, dataset, records, f"{dataset.name} {split} images")
    else:
        features = feature_records(pipeline.labeller, dataset, records, f"{dataset.name} {split} images")
        scores = pipeline.prompt_scores(features, prompts_of(dataset, PromptOptions()))
    return metrics_of(scores, labels_of(dataset, records))


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
