"""What a dataset of texts asks for: its fields, labels and metrics; the field ``text`` of its ``dataset.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vlkit.data.boxes import Record
from vlkit.data.manifest import MANIFEST, Dataset
from vlkit.errors import UserError

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")


@dataclass(frozen=True)
class TextTask:
    """A task over single texts or pairs of texts.

    Attributes:
        word: the word that a text-to-text model reads first (``rte``).
        fields: what stands before ``text`` and, for pairs, before ``text2`` (``sentence1:``).
        kind: classification or regression.
        labels: the classes, in the order of their numbers; empty for regression.
        metrics: some of :data:`METRICS`; their mean is the score.
    """

    word: str
    fields: tuple[str, ...]
    kind: Literal["classification", "regression"]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def pairs(self) -> bool:
        """Whether records hold two texts."""
        return len(self.fields) == 2

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return self.kind == "regression"

    def source(self, record: Mapping[str, Any]) -> str:
        """What a text-to-text model reads: the word, then each field with its text (``rte sentence1: … sentence2: …``).

        The study's form, word for word: GLUE's adapters and figures belong to it.
        """
        texts = [record["text"], record["text2"]] if self.pairs else [record["text"]]
        return " ".join([self.word, *(f"{name} {text}" for name, text in zip(self.fields, texts, strict=True))]).strip()

    def target(self, label: str | float) -> str:
        """What it writes: the number of the class, or a number with one decimal."""
        return f"{float(label):.1f}" if self.regression else str(self.labels.index(str(label)))

    def value(self, label: str | float) -> float:
        """A label as a number: that of its class, or itself."""
        return float(label) if self.regression else float(self.labels.index(str(label)))

    def problem(self, record: Record) -> str | None:
        """What is wrong with a record of this task; None if nothing is."""
        if self.pairs != ("text2" in record):
            return 'field "text2" is missing; add the second text' if self.pairs else 'field "text2": not a pair task'
        label = record.get("label")
        if label is None:
            return None
        if self.regression and isinstance(label, str):
            return f'field "label" is {label!r}; expected is a number'
        if not self.regression and str(label) not in self.labels:
            return f'field "label" is {label!r}; the classes are {", ".join(self.labels)}'
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``dataset.json``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def text_task_of(values: Any, where: str) -> TextTask:
    """The task that :meth:`TextTask.to_dict` wrote.

    Args:
        values: the field ``text``.
        where: file, for messages.

    Raises:
        UserError: a value is missing or wrong.
    """
    try:
        task = TextTask(
            str(values["word"]),
            tuple(map(str, values["fields"])),
            values["kind"],
            tuple(map(str, values["labels"])),
            tuple(map(str, values["metrics"])),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{where}: field "text" does not describe a task ({error}); prepare the dataset again'
        ) from None
    problems = [
        (
            task.kind not in ("classification", "regression"),
            f'"kind" {task.kind!r} is not classification or regression',
        ),
        (not 1 <= len(task.fields) <= 2, f'"fields" {list(task.fields)} are not one or two'),
        (
            not task.regression and len(set(task.labels)) < 2,
            f'"labels" {list(task.labels)} are not two classes or more',
        ),
        (not task.metrics or not set(task.metrics) <= set(METRICS), f'"metrics" are not some of {", ".join(METRICS)}'),
        (
            len(task.labels) > 2 and not {"f1", "matthews"}.isdisjoint(task.metrics),
            '"metrics" f1 and matthews need two classes',
        ),
    ]
    wrong = next((text for bad, text in problems if bad), None)
    if wrong:
        raise UserError(f'{where}: field "text": {wrong}; prepare the dataset again')
    return task


def task_of(dataset: Dataset) -> TextTask:
    """The task of a prepared dataset of texts.

    Raises:
        UserError: ``dataset.json`` does not describe it.
    """
    return text_task_of(dataset.extra.get("text"), str(dataset.root / MANIFEST))


def text_records(dataset: Dataset, split: str, labelled: bool = True) -> list[Record]:
    """The records of a split, each checked against the dataset's task.

    Args:
        dataset: a prepared dataset of texts.
        split: which split.
        labelled: whether every record must have a label.

    Raises:
        UserError: unknown split, or a wrong record; names file and line.
    """
    task, records = task_of(dataset), dataset.records(split)
    for number, record in enumerate(records, start=1):
        problem = task.problem(record)
        if problem is None and labelled and record.get("label") is None:
            problem = 'field "label" is missing; choose a split with labels (predict.py reads one without)'
        if problem:
            raise UserError(f"{dataset.split_file(split)}: record {number} ({record['id']}): {problem}")
    return records
