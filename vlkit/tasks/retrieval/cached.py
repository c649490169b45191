"""Evaluate image-text retrieval from the tap cache, as often as a run likes: nothing is decoded twice."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.data.manifest import Dataset
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.number_formats import NumberFormat
from vlkit.tap_cache.embed import embed_rows
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.retrieval.data import ImageTextPairs
from vlkit.tasks.retrieval.evaluate import captions_measured, retrieval_metrics
from vlkit.tasks.two_tower import TwoTower


class CachedSplit:
    """A split whose taps are cached; the first evaluation computes and stores the rows that are not on disk.

    Args:
        model: the two-tower model, on its device.
        base: its base.
        dataset, split: the images and captions to measure.
        where, stored: ``--cache`` and ``--cache_dtype``.
        fabric: device and precision; processes share the work.

    Raises:
        UserError: as :func:`vlkit.tap_cache.pairs.cached_pairs`.
    """

    def __init__(
        self,
        model: TwoTower,
        base: ClipBase,
        dataset: Dataset,
        split: str,
        where: Path | Literal[True],
        stored: NumberFormat,
        fabric: Fabric,
    ) -> None:
        self.model, self.split, self.fabric = model, split, fabric
        pairs = ImageTextPairs(dataset, split, image_transform(base.preprocess), every_caption=False)
        self.caches = cached_pairs(where, stored, pairs, model, base, fabric)
        most = captions_measured(dataset)
        self.counted = [captions[:most] for captions in pairs.captions_of]

    def metrics(self) -> dict[str, float]:
        """Recalls with the model's current weights; the taps are rounded as the cache stores them."""
        training = self.model.training
        self.model.eval()
        metrics = retrieval_metrics(*self._embed())
        self.model.train(training)
        return metrics

    def _embed(self) -> tuple[Tensor, Tensor, np.ndarray]:
        """As :func:`vlkit.tasks.retrieval.evaluate.embed_split`."""
        count, texts = len(self.counted), [row for rows in self.counted for row in rows]
        owner = np.repeat(np.arange(count), [len(rows) for rows in self.counted])
        mine, my_texts = my_share(self.fabric, count), [texts[i] for i in my_share(self.fabric, len(texts))]
        images = embed_rows(self.caches.media, self.model.embed_images, mine, f"{self.split} images")
        captions = embed_rows(self.caches.texts, self.model.embed_texts, my_texts, f"{self.split} captions")
        return gather_shares(self.fabric, images, count), gather_shares(self.fabric, captions, len(texts)), owner
