"""A control for task text: TF-IDF of words and pairs of words, and logistic regression (no language model).

    python tasks/text/bag_of_words.py --data.root data/rte --output runs/rte-words
    python tasks/compare.py --task text --kinds bag-of-words,sherl,full --output runs/compare

The regularisation is chosen on the validation split. Needs scikit-learn: pip install 'vlkit[controls]'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.text_task import task_of, text_records
from vlkit.engine.report import Report, print_report
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.splits import reported_split
from vlkit.tasks.text.bag_of_words import fit_bag_of_words
from vlkit.tasks.text.data import TextData, text_dataset
from vlkit.tasks.text.evaluate import prior_metrics
from vlkit.tasks.text.task import TASK


@dataclass
class Data(TextData):
    """Dataset to fit and measure."""

    train: str = "train"
    """Split to fit on."""
    validation: str = "val"
    """Split that chooses the regularisation."""


@dataclass
class Config:
    """Fit and measure a bag-of-words control."""

    output: Path = Path("runs/text-bag-of-words")
    """Folder for metrics.json."""
    data: Data = field(default_factory=Data)
    seed: int = 0
    """Written to the report; the fit itself is deterministic."""
    resume: bool = False
    """Accepted for tasks/compare.py: a fit takes seconds and starts anew."""


def main(config: Config) -> None:
    if (config.output / "metrics.json").exists() and not config.resume:
        raise UserError(f"--output {config.output}: already holds a run; choose another folder")
    dataset = text_dataset(config.data.root, config.data.demo, config.data.size, config.data.style)
    task, test = task_of(dataset), reported_split(dataset, config.data)
    splits = [text_records(dataset, split) for split in (config.data.train, config.data.validation, test)]
    began = time.monotonic()
    found = fit_bag_of_words(task, *splits)
    seconds = time.monotonic() - began
    most, before = prior_metrics(task, splits[0], splits[2])
    report = Report(
        task=TASK.name,
        base="none",
        adapter={"kind": "bag-of-words", "strength": found.strength},
        split=test,
        before=before,
        after=found.test,
        trainable_parameters=found.parameters,
        total_parameters=found.parameters,
        saved_activation_bytes=0,
        peak_memory_bytes=found.bytes,
        train_seconds=seconds,
        examples_per_second=len(splits[0]) / max(seconds, 1e-9),
        seed=config.seed,
        more={"before_is": f"{most} for every text", "validation": found.validation, "text_task": task.to_dict()},
    )
    write_json(config.output / "metrics.json", report.as_json())
    columns = {name: name for name in ("score", *task.metrics)}
    print_report(report, config.output, columns, "mean" if task.regression else "most frequent label")
    Console().print(f"regularisation C={found.strength:g}, chosen on split {config.data.validation}")


if __name__ == "__main__":
    run(main, Config)
