"""Images with classes as examples for training and evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from vlkit.data.images import read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.errors import some

log = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]


class LabelledImages:
    """Examples: pixels [3, H, W] and the number of the class, an int.

    Args:
        dataset: a prepared dataset of task ``classification``.
        records: its records to use.
        transform: image -> pixels.

    Attributes:
        labels: class number of each record, int64 [N].
    """

    def __init__(self, dataset: Dataset, records: Sequence[Record], transform: Transform) -> None:
        self.dataset, self.records, self.transform = dataset, list(records), transform
        self.labels = labels_of(dataset, self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_image(self.dataset, self.records[index])), int(self.labels[index])


def labels_of(dataset: Dataset, records: Sequence[Record]) -> Tensor:
    """Class number of each record, int64 [N]; the order of the classes is that of ``dataset.json``."""
    numbers = {name: number for number, name in enumerate(dataset.extra["classes"])}
    return torch.tensor([numbers[record["label"]] for record in records], dtype=torch.int64)


def warn_of_classes(dataset: Dataset, train: Sequence[Record], others: Sequence[Record], learns_all: bool) -> None:
    """Log which classes have no training image, or a single one, and how unbalanced the classes are.

    Args:
        dataset: the dataset.
        train: records to train on.
        others: records of the other splits.
        learns_all: the head knows classes without training images from their prompts.
    """
    counts = Counter(record["label"] for record in train)
    needed = {record["label"] for record in others}
    if absent := [name for name in dataset.extra["classes"] if name not in counts]:
        how = "only their prompts describe them" if learns_all else "this head cannot learn them"
        tested = sum(name in needed for name in absent)
        log.warning("classes without a training image (%d of them tested): %s; %s", tested, some(absent), how)
    if single := [name for name, count in counts.items() if count == 1]:
        log.info("classes with a single training image: %s", some(single))
    few, many = min(counts.values()), max(counts.values())
    log.info("%d training images, %s per class", len(train), few if few == many else f"{few} to {many}")
