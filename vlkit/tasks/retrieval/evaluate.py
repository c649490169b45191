"""Image-text retrieval: build the two-tower model and measure it. Shared by training, evaluation and serving."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.images import image_batches, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.errors import UserError
from vlkit.metrics.retrieval import RECALL_AT, fold_metrics, image_text_metrics
from vlkit.metrics.threshold import best_f1_threshold

log = logging.getLogger(__name__)

FIVE_CAPTIONS = frozenset({"coco", "flickr30k"})
"""Datasets whose protocol measures the first five captions per image; for all others every caption counts."""
COLUMNS = {f"{way} R@{k}": f"{way}_r{k}" for way in ("i2t", "t2i") for k in RECALL_AT} | {"rsum": "rsum"}
"""Heading -> metric, for a table of results."""


class Towers(Protocol):
    """What embeds: :class:`~vlkit.tasks.two_tower.TwoTower`, or frozen towers without projections."""

    training: bool

    @property
    def out_dim(self) -> int: ...
    def embed_images(self, pixels: Tensor) -> Tensor: ...
    def embed_texts(self, ids: Tensor) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


class Embedder:
    """Embeds images and texts with a two-tower model in batches, without gradient.

    Args:
        model: the model on its device; run in eval mode, its mode is restored.
        base: its base (for preprocessing and tokenizer).
        fabric: device and precision.
        batch_size: images or texts per batch.
    """

    def __init__(self, model: Towers, base: ClipBase, fabric: Fabric, batch_size: int = 64) -> None:
        self.model, self.base, self.fabric, self.batch_size = model, base, fabric, batch_size
        self.transform = image_transform(base.preprocess)

    def images(self, sources: Sequence[Any], open_one: Callable[[Any], Image.Image], label: str = "images") -> Tensor:
        """``open_one`` turns each source into an RGB image -> [n, E] float32 on the CPU, unit norm."""
        pixels = image_batches(list(sources), lambda source: self.transform(open_one(source)), self.batch_size)
        return self._run(self.model.embed_images, pixels, len(sources), label)

    @torch.no_grad()
    def pixels(self, batch: Tensor) -> Tensor:
        """Transformed images [B, 3, H, W] -> [B, E] float32 on the device, unit norm, without waiting for it.

        The model must be in eval mode.
        """
        with self.fabric.autocast():
            return self.model.embed_images(self.fabric.to_device(batch)).float()

    def texts(self, texts: Sequence[str], label: str = "texts") -> Tensor:
        """Texts -> [n, E] float32 on the CPU, unit norm."""
        if not texts:
            return self._run(self.model.embed_texts, [], 0, label)
        ids = self.base.tokenize(list(texts))
        # Batches of similar length need less padding.
        order = self.base.text.real(ids).sum(1).argsort()
        batches = (self.base.text.trim(ids[rows]) for rows in order.split(self.batch_size))
        return self._run(self.model.embed_texts, batches, len(texts), label)[order.argsort()]

    @torch.no_grad()
    def _run(
        self, embed: Callable[[Any], Tensor], batches: Iterable[Any], count: int, label: str, size: int | None = None
    ) -> Tensor:
        training = self.model.training
        self.model.eval()
        steps = -(-count // (size or self.batch_size))
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        found = []
        for batch in track(batches, label, total=steps, console=Console(stderr=True), transient=True, disable=hidden):
            with self.fabric.autocast():
                found.append(embed(self.fabric.to_device(batch)).float().cpu())
        self.model.train(training)
        return torch.cat(found) if found else torch.empty(0, self.model.out_dim)


def embed_split(embedder: Embedder, dataset: Dataset, split: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Embed every image of a split and the captions that count (:func:`captions_measured`); processes share the work.

    Returns:
        Images [N, E], captions [M, E] (float32, CPU, unit norm) and the image of each caption, int64 [M].
    """
    records, fabric = dataset.records(split), embedder.fabric
    if not records:
        raise UserError(f"{dataset.split_file(split)}: split {split!r} is empty; choose another split")
    counted = [record["texts"][: captions_measured(dataset)] for record in records]
    texts = [text for own in counted for text in own]
    owner = np.repeat(np.arange(len(records)), [len(own) for own in counted])
    warn_of_cut_texts(embedder.base.tokenize, texts, f"{split} captions")
    mine = [records[i] for i in my_share(fabric, len(records))]
    images = embedder.images(mine, lambda record: read_image(dataset, record), f"{split} images")
    captions = embedder.texts([texts[i] for i in my_share(fabric, len(texts))], f"{split} captions")
    return gather_shares(fabric, images, len(records)), gather_shares(fabric, captions, len(texts)), owner


def calibrated_search(embedder: Embedder, dataset: Dataset, split: str) -> dict[str, Any]:
    """``min_score`` for searches by text: the cosine that best separates matching from other pairs of a split, with its
    F1, precision and recall there (:func:`vlkit.metrics.threshold.best_f1_threshold`), and what it was measured on.
    """
    images, texts, owner = embed_split(embedder, dataset, split)
    return {**best_f1_threshold(images, texts, owner), "data": dataset.name, "split": split, "images": len(images)}


def captions_measured(dataset: Dataset) -> int | None:
    """Most captions per image that count; None = all."""
    source = dataset.source
    while isinstance(source, dict) and "source" in source:  # a cleaned copy of a dataset
        source = source["source"]
    own = isinstance(source, dict) and "folder" in source  # a user's own folder, whose name may be coco
    return 5 if dataset.name.lower() in FIVE_CAPTIONS and not own else None


def captions_left_out(dataset: Dataset, split: str) -> str:
    """A sentence that reports captions of a split that are not measured; empty if all are."""
    most = captions_measured(dataset)
    total = sum(len(record["texts"]) for record in dataset.records(split))
    left = total - sum(len(record["texts"][:most]) for record in dataset.records(split))
    if not left:
        return ""
    rule = f"the protocol of {dataset.name} measures the first {most} of each image"
    return f"{left:,} of {total:,} captions of {dataset.name}/{split} are left out: {rule}"


def evaluate_split(embedder: Embedder, dataset: Dataset, split: str) -> dict[str, float]:
    """Recalls of a split; see :func:`vlkit.metrics.retrieval.metrics_of_ranks` for the keys. Logs once which
    captions are left out.
    """
    if left_out := captions_left_out(dataset, split):
        _say_once(left_out)
    return retrieval_metrics(*embed_split(embedder, dataset, split))


@lru_cache(maxsize=64)  # a run evaluates every few epochs
def _say_once(message: str) -> None:
    log.info("%s", message)


def retrieval_metrics(images: Tensor, texts: Tensor, owner: np.ndarray, folds: int = 1) -> dict[str, float]:
    """Recalls of embeddings.

    Args:
        images: [N, E].
        texts: [M, E].
        owner: int [M], the image of each text.
        folds: also report ``fold_*``, the mean over this number of consecutive folds (5 folds of COCO's 5,000 test
            images are the "COCO 1K" protocol); 1 = no folds.

    Raises:
        UserError: ``folds`` is less than 1 or does not divide the number of images.
    """
    if folds < 1:
        raise UserError(f"folds={folds}: must be at least 1; 1 = no folds")
    metrics = image_text_metrics(images, texts, owner)
    if folds > 1:
        try:
            means = fold_metrics(images, texts, owner, folds)
        except ValueError as error:
            raise UserError(f"--folds {folds}: {error}; give a divisor of the number of images") from None
        metrics |= {f"fold_{key}": value for key, value in means.items()}
    return metrics


def index_recalls(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, factory: str) -> dict[str, float]:
    """Recalls with candidates from a FAISS index instead of exhaustive comparison.

    Args:
        images: [N, E] float32.
        texts: [M, E] float32.
        owner: int [M], the image of each text.
        factory: FAISS factory string.

    Returns:
        ``index_i2t_r1`` … ``index_t2i_r10`` in percent.
    """
    from vlkit.index.approximate import trained_index  # importing FAISS is slow, and rarely needed

    deepest = max(RECALL_AT)
    metrics: dict[str, float] = {}
    sides = (
        ("i2t", images, texts, owner, np.arange(len(images))),
        ("t2i", texts, images, np.arange(len(images)), owner),
    )
    for direction, queries, candidates, candidate_owner, query_owner in sides:
        index = trained_index(candidates, factory)
        rows = index.search(np.ascontiguousarray(queries), min(deepest, len(candidates)))[1]
        hit = (candidate_owner[rows] == query_owner[:, None]) & (rows >= 0)
        for k in RECALL_AT:
            metrics[f"index_{direction}_r{k}"] = 100 * float(hit[:, :k].any(1).mean())
    return metrics
