"""Visual grounding: build the model, predict boxes and measure them. Shared by training, evaluation and serving."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from vlkit.cli.show import Console, track
from vlkit.data.images import read_image
from vlkit.data.manifest import Dataset
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.distributed import my_share
from vlkit.metrics.coco import CocoForm, coco_form
from vlkit.metrics.grounding import grounding_metrics, phrase_recall, precision_at_k, ranking
from vlkit.tasks.grounding.candidates import runners_up
from vlkit.tasks.grounding.data import BoxTransform, Shape, in_their_files
from vlkit.tasks.grounding.head import Grounder

TESTS = ("testA", "testB")
"""Splits that "test" means in datasets without a split of that name (RefCOCO, RefCOCO+)."""


@dataclass(frozen=True)
class Found:
    """Boxes of one text, best first.

    Attributes:
        boxes: float32 [Q, 4], x1, y1, x2, y2 in pixels of the original image, not clipped to it.
        scores: float32 [Q], the IoU with a right box that the model expects, 0..1; for runners-up (see
            :meth:`Locator.find`) an estimate that was not learned.
    """

    boxes: np.ndarray
    scores: np.ndarray


class Locator:
    """Finds texts in images with a grounding model, in batches, without gradient.

    Args:
        model: the model on its device; run in eval mode, its mode is restored.
        base: the base that reads images (for its preprocessing).
        text: the side that reads texts (for its tokenizer).
        fabric: device and precision.
        shape: how images are fitted into the input (:class:`vlkit.tasks.grounding.data.Fit`).
        batch_size: images per batch.
        texts: most texts per batch.
    """

    def __init__(
        self,
        model: Grounder,
        base: ClipBase,
        text: TextSide,
        fabric: Fabric,
        shape: Shape = "squash",
        batch_size: int = 32,
        texts: int = 256,
    ) -> None:
        self.model, self.base, self.text, self.fabric = model, base, text, fabric
        self.transform = BoxTransform(base.preprocess, shape)
        self.batch_size, self.texts = batch_size, texts

    def find(
        self,
        sources: Sequence[Any],
        texts: Sequence[Sequence[str]],
        open_one: Callable[[Any], Image.Image],
        label: str = "images",
        candidates: int = 1,
    ) -> Iterator[list[Found]]:
        """Boxes of each source's texts; ``open_one`` turns a source into an RGB image. Images are read a batch ahead.

        A model with one query has one answer. With more ``candidates``, further peaks of its heat map follow as
        runners-up (:func:`vlkit.tasks.grounding.candidates.runners_up`), up to that number of boxes per text. A
        runner-up's score is the answer's score times the heat at its place, as a share of the hottest.
        """
        parts = list(self._parts(texts))
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        bar = track(parts, label, console=Console(stderr=True), transient=True, disable=hidden)
        with ThreadPoolExecutor(4) as pool:

            def ahead(rows: range) -> list[Any]:
                return [pool.submit(self._prepare, sources[row], open_one) for row in rows]

            waiting = ahead(parts[0]) if parts else []
            for number, rows in enumerate(bar):
                now, waiting = waiting, ahead(parts[number + 1]) if number + 1 < len(parts) else []
                pixels, sizes = zip(*(future.result() for future in now), strict=True)
                yield from self._boxes(torch.stack(pixels), sizes, [texts[row] for row in rows], candidates)

    def _parts(self, texts: Sequence[Sequence[str]]) -> Iterator[range]:
        """Batches of consecutive images, within the limits on images and texts."""
        start = count = 0
        for row, own in enumerate(texts):
            if row > start and (row - start == self.batch_size or count + len(own) > self.texts):
                yield range(start, row)
                start, count = row, 0
            count += len(own)
        if start < len(texts):
            yield range(start, len(texts))

    def _prepare(self, source: Any, open_one: Callable[[Any], Image.Image]) -> tuple[Tensor, tuple[int, int]]:
        image = open_one(source)
        return self.transform(image, torch.empty(0, 4))[0], image.size

    @torch.no_grad()
    def _boxes(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], texts: list[Sequence[str]], candidates: int
    ) -> Iterator[list[Found]]:
        training = self.model.training
        self.model.eval()
        owner = torch.tensor([i for i, own in enumerate(texts) for _ in own], dtype=torch.int64)
        ids = self.text.tokenize([text for own in texts for text in own])
        with self.fabric.autocast():
            last = self.model(*(self.fabric.to_device(x) for x in (pixels, ids, owner)))[-1]
        self.model.train(training)
        boxes, scores = last.boxes.cpu(), last.scores.sigmoid().cpu()  # once for all texts: it waits for the GPU
        row = 0
        for (width, height), own in zip(sizes, texts, strict=True):
            found = []
            for _ in own:
                pair = boxes[row], scores[row]
                if len(scores[row]) == 1 and candidates > 1:
                    pair = _with_runners_up(*pair, last.heat[row, 0].cpu(), last.cells[row].cpu(), candidates)
                order = pair[1].argsort(descending=True, stable=True)
                corners = box_convert(pair[0][order], "cxcywh", "xyxy")
                placed = self.transform.fit.to_image(corners, width, height)
                found.append(Found(placed.numpy(), pair[1][order].numpy()))
                row += 1
            yield found


def _with_runners_up(
    boxes: Tensor, scores: Tensor, heat: Tensor, cells: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """The one answer (boxes [1, 4], scores [1]), followed by its runners-up."""
    more, shares = runners_up(heat, cells, boxes[0], candidates - 1)
    return torch.cat([boxes, more]), torch.cat([scores, scores * shares])


def records_of(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """Records of a split; the field ``split`` of each names the split it comes from.

    "test" means :data:`TESTS` if the dataset has no split of that name.

    Raises:
        UserError: an unknown split; lists the existing ones.
    """
    names = [split]
    if split == "test" and split not in dataset.splits:
        names = [name for name in TESTS if name in dataset.splits] or names
    return [{**record, "split": name} for name in names for record in dataset.records(name)]


def find_split(locator: Locator, dataset: Dataset, split: str) -> tuple[list[dict[str, Any]], list[Found]]:
    """Records of a split (see :func:`records_of`) with boxes in file pixels, and the boxes found for each; processes
    share the images.

    Raises:
        UserError: an image cannot be read, or its size contradicts the size that a record states.
    """
    records = in_their_files(dataset, records_of(dataset, split))
    warn_of_cut_texts(locator.text, [record["text"] for record in records], f"{split} texts")
    groups: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        groups.setdefault(record["image"], []).append(row)
    images = [list(groups.values())[i] for i in my_share(locator.fabric, len(groups))]
    texts = [[records[row]["text"] for row in rows] for rows in images]
    firsts = [records[rows[0]] for rows in images]
    found = torch.zeros(len(records), locator.model.fusion.queries.shape[0], 5)
    answers = locator.find(firsts, texts, lambda record: read_image(dataset, record), f"{split} images")
    for rows, own in zip(images, answers, strict=True):
        for row, answer in zip(rows, own, strict=True):
            found[row, :, :4], found[row, :, 4] = torch.from_numpy(answer.boxes), torch.from_numpy(answer.scores)
    if locator.fabric.world_size > 1:
        found = cast(Tensor, locator.fabric.all_reduce(locator.fabric.to_device(found), reduce_op="sum")).cpu()
    return records, [Found(one[:, :4].numpy(), one[:, 4].numpy()) for one in found]


def evaluate_split(locator: Locator, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a split; see :func:`metrics_of`."""
    return metrics_of(*find_split(locator, dataset, split))


def in_coco_form(records: Sequence[dict[str, Any]], found: Sequence[Found]) -> CocoForm:
    """Annotated and found boxes as COCO writes them; arguments as for :func:`metrics_of`."""
    right = [np.array(record.get("boxes", [record["box"]]), dtype=np.float32) for record in records]
    names = [str(record["id"]) for record in records]
    return coco_form(names, right, [one.boxes for one in found], [one.scores for one in found])


def metrics_of(records: Sequence[dict[str, Any]], found: Sequence[Found]) -> dict[str, float]:
    """Metrics of predictions, percent.

    Args:
        records: have ``box``; phrases with several boxes also have ``boxes`` and ``categories``; ``split`` names the
            split that a record comes from.
        found: the boxes of each record, best first.

    Returns:
        ``acc@0.5`` and ``mean_iou`` of the best box, ``acc@0.5_giou`` (generalised IoU, as published for the MDETR
        family); with several queries also ``p@5`` and ``p@10``; for phrases ``any_box_r@k`` and ``merged_boxes_r@k``;
        with more than one split, ``acc@0.5`` of each as ``testA_acc@0.5``.
    """
    target = np.array([record["box"] for record in records], dtype=np.float32)
    best = np.stack([one.boxes[ranking(one.boxes, one.scores)[0]] for one in found])  # acc@0.5 is P@1
    boxes, scores = [one.boxes for one in found], [one.scores for one in found]
    metrics = grounding_metrics(best, target)
    metrics["acc@0.5_giou"] = precision_at_k(boxes, scores, target, "giou")["p@1_giou"]
    if boxes[0].shape[0] > 1:
        metrics |= {key: value for key, value in precision_at_k(boxes, scores, target).items() if key != "p@1"}
    if any("boxes" in record for record in records):
        several = [np.array(record.get("boxes", [record["box"]]), dtype=np.float32) for record in records]
        categories = [record.get("categories", ()) for record in records]
        for protocol in ("any_box", "merged_boxes"):
            recall = phrase_recall(boxes, several, categories, protocol)
            metrics |= {f"{protocol}_{key}": value for key, value in recall.items()}
    names = [record.get("split") for record in records]
    if len(set(names)) > 1:
        for name in dict.fromkeys(names):
            rows = np.array([own == name for own in names])
            metrics[f"{name}_acc@0.5"] = grounding_metrics(best[rows], target[rows])["acc@0.5"]
    return metrics
