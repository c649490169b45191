"""Measure a saved VQA adapter on a split of a prepared dataset.

python tasks/vqa/evaluate.py --model runs/vqa/… --data.root DIR --split val --json metrics.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.after_training import AfterTraining, load_mixed, measure_others, other_datasets
from vlkit.tasks.vqa.data import answered, form_of, warn_of_unlabelled
from vlkit.tasks.vqa.evaluate import by_question_type, predict_records, score
from vlkit.tasks.vqa.gqa import official_gqa
from vlkit.tasks.vqa.pipeline import VqaPipeline
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


@dataclass(kw_only=True)
class Config(AfterTraining):
    """Measure a saved VQA adapter."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate; it must have answers."""
    gqa_questions: Path | None = None
    """Official question file of the split (testdev_balanced_questions.json): adds GQA's official figures."""
    gqa_choices: Path | None = None
    """Official choices file: adds GQA's validity and plausibility."""

    def __post_init__(self) -> None:
        if self.gqa_choices is not None and self.gqa_questions is None:
            raise UserError("--gqa_choices: needs --gqa_questions FILE, the official questions of the split")


def main(config: Config) -> None:
    dataset = TASK.dataset(config.data.root, size=config.data.size, style=config.data.style)
    records = answered(dataset, config.split)
    others = other_datasets(config, TASK, config.split, answered)
    pipeline = load_mixed(config.model, TASK.name, config)
    if pipeline.answerer.vocabulary:
        warn_of_unlabelled(dataset, [config.split], pipeline.answerer.vocabulary)
    predictions = predict_records(pipeline.answerer, dataset, records, f"{config.split} questions")
    metrics = score(records, predictions, form_of(dataset))
    if config.gqa_questions is not None:
        metrics |= official_gqa(config.gqa_questions, config.gqa_choices, predictions)
    table = Table(title=f"{pipeline.name}: {len(records)} questions of {dataset.name}/{config.split}")
    table.add_column("metric")
    table.add_column("percent", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    Console().print(table)
    also = measure_others(config.model, config, TASK, config.split, others, measure)
    if config.json:
        types = by_question_type(records, predictions, form_of(dataset))
        about = {"model": str(config.model), "split": config.split}
        write_json(config.json, {**about, **metrics, **({"question_types": types} if types else {}), **also})


def measure(pipeline: VqaPipeline, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a pipeline on a split with answers."""
    records = answered(dataset, split)
    predictions = predict_records(pipeline.answerer, dataset, records, f"{split} questions")
    return score(records, predictions, form_of(dataset))


if __name__ == "__main__":
    run(main, Config)
