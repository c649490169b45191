"""Label a single text or pair, or every text of a split (which may have no labels).

    python tasks/text/predict.py --model runs/text/… --text "a red cat on a box" --text2 "a box below a red cat"
    python tasks/text/predict.py --model runs/text/… --data.root data/rte --split hidden --output RTE.tsv

A file that ends in .tsv has the form of GLUE submissions (index, prediction); any other is a JSON list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.text_task import TextTask, text_records
from vlkit.errors import UserError
from vlkit.files import write_json, write_text
from vlkit.tasks.load import load
from vlkit.tasks.text.data import TextSource, text_dataset
from vlkit.tasks.text.evaluate import Label, label_records
from vlkit.tasks.text.task import TASK


@dataclass
class Config:
    """Label a single text or pair, or every text of a split."""

    model: Path
    """Run or adapter folder."""
    text: str | None = None
    """Label this text and print the result."""
    text2: str | None = None
    """Second text of a pair."""
    data: TextSource = field(default_factory=TextSource)
    split: str = "test"
    """Split to label."""
    output: Path = Path("labels.json")
    """File to write."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if self.text is None and self.text2 is not None:
            raise UserError("--text TEXT is missing: --text2 is the second text of a pair")


def main(config: Config) -> None:
    pipeline = load(config.model, config.device, task=TASK.name)
    if config.text is not None:
        label, probability = pipeline.label(config.text, config.text2)
        Console().print(f"{probability:6.3f}  {label}")
        return
    dataset = text_dataset(config.data.root, config.data.demo, config.data.size, config.data.style)
    records = text_records(dataset, config.split, labelled=False)
    found = label_records(pipeline.labeller, records, config.split)
    if config.output.suffix == ".tsv":
        # GLUE counts the rows of its file; data_prep/glue.py keeps their numbers where it leaves out a row.
        numbers = [str(record["id"]).rpartition("/")[2] for record in records]
        if not all(map(str.isdecimal, numbers)) or len(set(numbers)) < len(numbers):
            numbers = list(map(str, range(len(found))))
        rows = [f"{number}\t{submitted(pipeline.task, one)}" for number, one in zip(numbers, found, strict=True)]
        write_text(config.output, "\n".join(["index\tprediction", *rows]) + "\n")
    else:
        pairs = zip(records, found, strict=True)
        rows = [{"id": record["id"], "label": one.text, "probability": one.probability} for record, one in pairs]
        write_json(config.output, rows)
    Console().print(f"{len(rows)} labels: {config.output}")


def submitted(task: TextTask, label: Label) -> str:
    """A label as GLUE takes it; what is no label becomes the first class, or 0."""
    if task.regression:
        return f"{min(max(label.value or 0.0, 0.0), 5.0):.3f}"
    return task.labels[int(label.value or 0)]


if __name__ == "__main__":
    run(main, Config)
