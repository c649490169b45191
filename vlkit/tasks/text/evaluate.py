"""Label texts and measure it. Shared by training, evaluation and serving."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.text_task import TextTask, text_records
from vlkit.encoders.bases import TextBase
from vlkit.engine.distributed import gather_objects, my_share
from vlkit.metrics import glue
from vlkit.tasks.generation import Reformulator, beam_search
from vlkit.tasks.text.data import TextCollate
from vlkit.tasks.text.model import HeadOptions, Model

UNREAD = -1.0
"""What a written text that is no number counts as, where a number is asked for."""


class Label(NamedTuple):
    """What a model says about a text.

    Attributes:
        value: the number of the class, or the number; None = what was written is neither.
        text: the class, the number, or what was written instead.
        probability: of the class or of the written text; 1 for numbers of a classifier.
    """

    value: float | None
    text: str
    probability: float


class Labeller:
    """Labels texts in batches, without gradient.

    Args:
        model: the model on its device; run in eval mode, its mode is restored.
        base: its text base.
        task: the task.
        head: options of the model's head.
        fabric: device and precision.
        batch_size: texts per batch.
    """

    def __init__(
        self, model: Model, base: TextBase, task: TextTask, head: HeadOptions, fabric: Fabric, batch_size: int = 100
    ) -> None:
        self.model, self.base, self.task, self.fabric, self.batch_size = model, base, task, fabric, batch_size
        self.writes = isinstance(model, Reformulator)
        self.collate = TextCollate(task, base, head.source_tokens, self.writes)
        # Numbers of a regression are written with one decimal and so have no longest label: 5.0, or 10.0 at most.
        known = [str(i) for i in range(len(task.labels))] or ["-10.0"]
        self.longest = max(base.lengths(known))

    @torch.no_grad()
    def label(self, records: Sequence[Record], label: str = "texts") -> list[Label]:
        """What the model says about each text (or pair); labels of the records are not read."""
        training = self.model.training
        self.model.eval()
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        starts = range(0, len(records), self.batch_size)
        found: list[Label] = []
        for start in track(starts, label, len(starts), console=Console(stderr=True), transient=True, disable=hidden):
            ids = self.collate.sources(list(records[start : start + self.batch_size]))
            with self.fabric.autocast():
                found += (self._written if self.writes else self._chosen)(self.fabric.to_device(ids))
        self.model.train(training)
        return found

    def _written(self, ids: Tensor) -> list[Label]:
        base, model = self.base, cast(Reformulator, self.model)
        special = cast(int, base.start_id), base.tokenizer.eos_token_id, base.tokenizer.pad_token_id
        rows, logs = beam_search(model, model.memory(ids), *special, beams=1, max_tokens=self.longest)
        texts = base.tokenizer.batch_decode(rows[:, 0], skip_special_tokens=True)
        return [self.read(text.strip(), math.exp(log)) for text, log in zip(texts, logs[:, 0].tolist(), strict=True)]

    def read(self, text: str, probability: float) -> Label:
        """A written text as a label; exact strings only (``0.`` is not ``0``)."""
        if self.task.regression:
            try:
                value = float(text)
            except ValueError:
                return Label(None, text, probability)
            return Label(value if math.isfinite(value) else None, text, probability)
        names = {str(number): name for number, name in enumerate(self.task.labels)}
        return Label(float(text), names[text], probability) if text in names else Label(None, text, probability)

    def _chosen(self, ids: Tensor) -> list[Label]:
        outputs = self.model(ids)
        if self.task.regression:
            return [Label(value, f"{value:.2f}", 1.0) for value in outputs.squeeze(1).tolist()]
        shares, best = outputs.softmax(1).max(1)
        pairs = zip(best.tolist(), shares.tolist(), strict=True)
        return [Label(float(number), self.task.labels[number], share) for number, share in pairs]


def label_records(labeller: Labeller, records: Sequence[Record], label: str) -> list[Label]:
    """A label for every record, in order; processes share the records."""
    mine = my_share(labeller.fabric, len(records))
    found = labeller.label([records[i] for i in mine], label)
    everywhere = dict(
        pair for share in gather_objects(labeller.fabric, list(zip(mine, found, strict=True))) for pair in share
    )
    return [everywhere[i] for i in range(len(records))]


def evaluate_split(labeller: Labeller, dataset: Dataset, split: str) -> dict[str, float]:
    """:func:`score` of a split."""
    records = text_records(dataset, split)
    return score(labeller.task, records, [one.value for one in label_records(labeller, records, split)])


def score(task: TextTask, records: Sequence[Record], values: Sequence[float | None]) -> dict[str, float]:
    """``score``, the mean of the task's metrics, these metrics, and ``invalid``: percent of texts without a label.

    A text without a label is wrong: for two classes it counts as the other class, for numbers as -1.

    Args:
        task: the task.
        records: each with ``label``.
        values: number of the class, or the number, of each; None = no label.
    """
    truth = [task.value(record["label"]) for record in records]
    given = [_instead(task, true) if value is None else value for value, true in zip(values, truth, strict=True)]
    metrics = {name: getattr(glue, name)(given, truth) for name in task.metrics}
    invalid = 100 * sum(value is None for value in values) / len(values)
    return {"score": sum(metrics.values()) / len(metrics), **metrics, "invalid": invalid}


def _instead(task: TextTask, true: float) -> float:
    """What counts in place of a missing label."""
    return 1 - true if len(task.labels) == 2 else UNREAD


def prior_metrics(task: TextTask, train: Sequence[Record], test: Sequence[Record]) -> tuple[str, dict[str, float]]:
    """The baseline without a model: the most frequent training label (or the mean) for every text."""
    if task.regression:
        mean = sum(task.value(record["label"]) for record in train) / len(train)
        return f"mean {mean:.2f}", score(task, test, [mean] * len(test))
    most = Counter(str(record["label"]) for record in train).most_common(1)[0][0]
    return most, score(task, test, [task.value(most)] * len(test))
