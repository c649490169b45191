"""Training from the tap cache: images whose early route is read from disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.data.images import identify_record, read_image
from vlkit.encoders.bases import ClipBase
from vlkit.engine.loader import EpochLoader
from vlkit.number_formats import NumberFormat
from vlkit.tap_cache.maker import CachedLoader, TapCache, check_room
from vlkit.tap_cache.rows import TapBatch
from vlkit.tap_cache.store import digest
from vlkit.tasks.classification.data import LabelledImages
from vlkit.tasks.classification.model import Classifier


@dataclass
class CachedLabels:
    """A dataset whose examples are row numbers; :meth:`collate` reads the rows of a batch.

    Attributes:
        examples: the images.
        images: the cache of their early route.
    """

    examples: LabelledImages
    images: TapCache

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, rows: list[int]) -> tuple[TapBatch, Tensor]:
        """Row numbers -> their taps and labels [B]."""
        return self.images.look_up(rows), self.examples.labels[rows]

    def loader(self, loader: EpochLoader) -> CachedLoader:
        """Wrap a loader of this dataset so that the cache completes its batches."""
        return CachedLoader(loader, [self.images], self.images.fabric)


def cached_labels(
    where: Path | Literal[True],
    stored: NumberFormat,
    examples: LabelledImages,
    model: Classifier,
    base: ClipBase,
    fabric: Fabric,
) -> CachedLabels:
    """Open the cache of a training set, log its size and check the free disk space.

    Args:
        where: ``--cache``: the folder, or True for the default one.
        stored: ``--cache_dtype``.
        examples: the training set, without augmentation.
        model: on the device.
        base: its base.
        fabric: the run's Fabric.

    Raises:
        UserError: the method has no early route, the folder is not writable, or the disk lacks space.
    """

    def load(rows: list[int]) -> Tensor:
        opened = (read_image(examples.dataset, examples.records[row]) for row in rows)
        return torch.stack([examples.transform(image) for image in opened])

    images: Any = model.image
    cache = TapCache(
        "image",
        images,
        [digest(identify_record(examples.dataset, record)) for record in examples.records],
        load,
        {"base": base.identity["image"], "preprocess": base.preprocess.to_dict()},
        folder=None if where is True else where,
        stored=stored,
        fabric=fabric,
    )
    check_room([cache])
    return CachedLabels(examples, cache)
