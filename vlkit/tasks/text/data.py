"""Texts with labels as examples, and what the model is given of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.text_task import TextTask, text_records
from vlkit.drawn.prepared import demo_dataset
from vlkit.drawn.world import Style, WorldSize
from vlkit.encoders.bases import TextBase

Demo = Literal["inference", "paraphrase"]


@dataclass
class TextSource:
    """Prepared or demo dataset of texts."""

    root: Path | None = None
    """Prepared dataset (data_prep/glue.py, data_prep/text.py); default: a demo dataset, made on first use."""
    demo: Demo = "inference"
    """Demo dataset: whether a sentence about a drawn scene follows from another, or says the same."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset: pairs about 400, 2,000 or 10,000 scenes."""
    style: Literal["plain", "drawn"] = "plain"
    """Style of the scenes; it changes what stands in them, not the sentences' form."""


@dataclass
class TextData(TextSource):
    """Dataset to train on."""

    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split to report on; if missing, the validation split."""


def text_dataset(root: Path | None, demo: Demo, size: WorldSize, style: Style) -> Dataset:
    """The prepared dataset in ``root``, or a demo dataset: natural-language inference or paraphrase.

    Raises:
        UserError: the folder holds no dataset, or one for another task.
    """
    if root is None:
        root = demo_dataset("text" if demo == "inference" else demo, size, style=style)
    return Dataset.open(root, "text")


class TextExamples:
    """The records of a split, all with labels."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.records = text_records(dataset, split)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


class Batch(NamedTuple):
    """B texts (or pairs of texts) of a training step."""

    ids: Tensor
    """[B, L] int64, padded to the longest."""
    targets: Tensor
    """[B, T] int64, the labels' tokens with their end; for a classifier [B] int64 classes or [B] float numbers."""


class TextCollate:
    """Records -> :class:`Batch`.

    Args:
        task: the dataset's task.
        base: the text base.
        max_tokens: longest source; the rest is cut.
        writes: whether the targets are the labels' tokens.
    """

    def __init__(self, task: TextTask, base: TextBase, max_tokens: int, writes: bool) -> None:
        self.task, self.base, self.max_tokens, self.writes = task, base, max_tokens, writes
        self.read = reading_of(task, base, writes)

    def __call__(self, records: list[Record]) -> Batch:
        labels = [record["label"] for record in records]
        if self.writes:
            targets = self.base.tokenize([self.task.target(label) for label in labels])
        else:
            values = torch.tensor([self.task.value(label) for label in labels])
            targets = values if self.task.regression else values.long()
        return Batch(self.sources(records), targets)

    def sources(self, records: list[Record]) -> Tensor:
        """The tokens of the texts, [B, L] int64."""
        return self.base.tokenize([self.read(record) for record in records], self.max_tokens)


def reading_of(task: TextTask, base: TextBase, writes: bool) -> Callable[[Mapping[str, Any]], str]:
    """Record -> the text that the encoder reads.

    A T5 reads the task's word and fields (GLUE's text-to-text form); a classifier on another encoder reads the texts,
    separated by the tokenizer's own token.
    """
    separator = getattr(base.tokenizer, "sep_token", None)
    if writes or base.decoder is not None or separator is None:
        return task.source
    return lambda record: f" {separator} ".join(record[key] for key in ("text", "text2")[: len(task.fields)])
