"""Score images and measure. Shared by training, evaluation and serving."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.images import image_batches, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import Augment, image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.errors import UserError
from vlkit.files import write_text
from vlkit.metrics.classification import classification_metrics, confusion_matrix
from vlkit.tasks.classification.data import labels_of
from vlkit.tasks.classification.model import Classifier


class Labeller:
    """Runs a classifier on images in batches, without gradient. ``open_one`` turns a source into an RGB image.

    Args:
        model: on its device; run in eval mode, its mode is restored.
        base: its base, for preprocessing.
        fabric: device and precision.
        batch_size: images per batch.
    """

    def __init__(self, model: Classifier, base: ClipBase, fabric: Fabric, batch_size: int = 64) -> None:
        self.model, self.base, self.fabric, self.batch_size = model, base, fabric, batch_size

    def scores(self, sources: Sequence[Any], open_one: Callable[[Any], Image.Image], label: str = "images") -> Tensor:
        """n sources -> logits [n, C] float32 on the CPU."""
        return self._run(self.model, sources, open_one, label)

    def features(
        self,
        sources: Sequence[Any],
        open_one: Callable[[Any], Image.Image],
        label: str = "images",
        augment: Augment = "none",
    ) -> Tensor:
        """n sources -> pooled embeddings [n, E] float32 on the CPU."""
        return self._run(self.model.features, sources, open_one, label, augment)

    @torch.no_grad()
    def _run(
        self,
        run: Callable[[Tensor], Tensor],
        sources: Sequence[Any],
        open_one: Callable[[Any], Image.Image],
        label: str,
        augment: Augment = "none",
    ) -> Tensor:
        training = self.model.training
        self.model.eval()
        transform = image_transform(self.base.preprocess, augment)
        # With augmentation one thread, so that the order of random draws is that of the images.
        threads = 4 if augment == "none" else 1

        def one_batch(pixels: Tensor) -> Tensor:
            with self.fabric.autocast():
                return run(self.fabric.to_device(pixels)).float().cpu()

        hidden = not self.fabric.is_global_zero
        found = in_batches(
            one_batch, sources, lambda s: transform(open_one(s)), self.batch_size, label, threads, hidden
        )
        self.model.train(training)
        return found


def in_batches(
    run: Callable[[Tensor], Tensor],
    sources: Sequence[Any],
    read: Callable[[Any], Tensor],
    batch_size: int,
    label: str,
    threads: int = 4,
    hidden: bool = False,
) -> Tensor:
    """Read images beside the model, batch by batch, with a progress bar on a terminal.

    Args:
        run: pixels [B, 3, H, W] -> rows [B, …] on the CPU.
        sources: what to read.
        read: source -> pixels [3, H, W].
        batch_size: images per batch.
        label: name on the bar.
        threads: readers.
        hidden: never show the bar.

    Returns:
        The rows of all sources, [n, …].
    """
    batches = image_batches(list(sources), read, batch_size, threads)
    hidden = hidden or not sys.stderr.isatty()
    steps, console = -(-len(sources) // batch_size), Console(stderr=True)
    return torch.cat(
        [run(pixels) for pixels in track(batches, label, total=steps, console=console, transient=True, disable=hidden)]
    )


class Scorer(Protocol):
    """What scores images: :class:`Labeller`, or a model behind an API."""

    fabric: Fabric

    def scores(self, sources: Sequence[Any], open_one: Callable[[Any], Image.Image], label: str = "images") -> Tensor:
        """n sources -> logits [n, C] float32 on the CPU."""
        ...


def score_records(labeller: Scorer, dataset: Dataset, records: Sequence[Record], label: str) -> Tensor:
    """Logits of records, [n, C] float32 on the CPU; processes share the images.

    Raises:
        UserError: there are no records, or an image cannot be read.
    """
    return _shared(labeller.scores, labeller.fabric, dataset, records, label)


def feature_records(
    labeller: Labeller, dataset: Dataset, records: Sequence[Record], label: str, views: int = 1
) -> Tensor:
    """Pooled embeddings of records, [n, E] float32; with ``views`` above 1 the mean of the unit embeddings of that many
    random crops.
    """
    if views == 1:
        return _shared(labeller.features, labeller.fabric, dataset, records, label)

    def crops(sources: Sequence[Any], open_one: Callable[[Any], Image.Image], label: str) -> Tensor:
        return labeller.features(sources, open_one, label, "flip")

    found = [_shared(crops, labeller.fabric, dataset, records, f"{label} {v + 1}/{views}") for v in range(views)]
    return torch.stack([torch.nn.functional.normalize(one, dim=-1) for one in found]).mean(0)


def _shared(
    run: Callable[..., Tensor], fabric: Fabric, dataset: Dataset, records: Sequence[Record], label: str
) -> Tensor:
    if len(records) < fabric.world_size:
        raise UserError(f"{dataset.root}: {len(records)} {label} are too few for {fabric.world_size} process(es)")
    mine = [records[i] for i in my_share(fabric, len(records))]
    return gather_shares(fabric, run(mine, lambda record: read_image(dataset, record), label), len(records))


def evaluate_records(
    labeller: Labeller, dataset: Dataset, records: Sequence[Record], label: str = "images"
) -> dict[str, float]:
    """``top1``, ``top5``, ``mean_per_class`` and ``ece`` of records, in percent."""
    scores = score_records(labeller, dataset, records, label)
    return metrics_of(scores, labels_of(dataset, records))


def metrics_of(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of logits [N, C] and labels [N]; see :func:`vlkit.metrics.classification.classification_metrics`.

    Raises:
        UserError: a score is not a number, as after training with far too high a learning rate.
    """
    if not torch.isfinite(scores).all():
        raise UserError("the model's scores are not finite; train again with a lower --lr")
    return classification_metrics(scores.double().numpy(), labels.numpy())


def most_frequent(train: Sequence[Record], test: Sequence[Record], dataset: Dataset) -> dict[str, float]:
    """The baseline without a model: every image gets the classes in the order of their training frequency."""
    counts = torch.bincount(labels_of(dataset, train), minlength=len(dataset.extra["classes"])).double()
    return metrics_of((counts + 1e-9).log().expand(len(test), -1), labels_of(dataset, test))


def confusion_of(scores: Tensor, labels: Tensor) -> np.ndarray:
    """Counts [C, C]: row = right class, column = predicted class."""
    return confusion_matrix(np.argmax(scores.numpy(), axis=1), labels.numpy(), scores.shape[1])


def write_confusion(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the matrix to a PNG, and write its counts to a CSV of the same name beside it."""
    from vlkit.tasks.classification.confusion import draw_confusion  # matplotlib is slow to import

    draw_confusion(path, matrix, classes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["right \\ predicted", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    write_text(path.with_suffix(".csv"), text.getvalue())
