"""Images with texts and boxes as examples: boxes are transformed with the pixels, and back.

Boxes of records are absolute ``x1, y1, x2, y2`` pixels of the original image; boxes of examples are shares (0..1) of
the model's input. A base's own preprocessing (shortest side, then a centre crop) would cut off boxes, so here the
whole image is always kept (:class:`Fit`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from vlkit.data.boxes import in_file_pixels, stated_size
from vlkit.data.images import identify_file, read_image, record_image_size
from vlkit.data.manifest import Dataset
from vlkit.encoders.bases import Preprocess
from vlkit.tap_cache.rows import TapBatch
from vlkit.tasks.grounding.mirror import mirrored

VF: Any = functional  # its annotations name tensors alone, but images come in and go out

Shape = Literal["squash", "letterbox"]
Augment = Literal["none", "color", "crop"]
Boxed = tuple[Image.Image, Tensor]
"""An image and its boxes, float32 [n, 4] in its pixels (:func:`with_boxes`)."""

LEAST_KEPT = 0.75
"""Least share of each side that a crop keeps, so that texts like "top right" or "second from the left" stay true."""


@dataclass(frozen=True)
class Fit:
    """How a whole image is fitted into the model's input.

    Attributes:
        size: (height, width) of the input in pixels.
        shape: ``squash``: each side is scaled separately, the image fills the input (the aspect ratio changes);
            ``letterbox``: both sides are scaled equally and the rest is padded (the aspect ratio stays, cells are
                lost).
        fill: 0..255, value of the padding.
    """

    size: tuple[int, int]
    shape: Shape = "squash"
    fill: int = 0

    def inner(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels of the input that a ``width`` x ``height`` image takes."""
        rows, columns = self.size
        if self.shape == "squash":
            return 0, 0, columns, rows
        scale = min(rows / height, columns / width)
        new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
        return (columns - new_width) // 2, (rows - new_height) // 2, new_width, new_height

    def place(self, image: Image.Image, boxes: Tensor, mode: InterpolationMode) -> Boxed:
        """The image resized to the input, and its boxes in the input's pixels."""
        return self._put(image, image.size, mode), self.place_boxes(boxes, image.size)

    def place_boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (:func:`with_boxes`) of an image of ``size`` (width, height) in the input's pixels."""
        return self._put(boxes, size, InterpolationMode.NEAREST)

    def _put(self, x: Any, size: tuple[int, int], mode: InterpolationMode) -> Any:
        left, top, width, height = self.inner(*size)
        x = VF.resize(x, [height, width], mode, antialias=True)
        if (height, width) == self.size:
            return x
        return VF.pad(x, [left, top, self.size[1] - width - left, self.size[0] - height - top], self.fill)

    def to_image(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """The exact inverse for boxes: [..., 4] corners as shares of the input -> pixels of a ``width`` x ``height``
        image, not clipped to it.
        """
        left, top, inner_width, inner_height = self.inner(width, height)
        boxes = boxes.double()  # so that a box comes back exactly as it was
        sides = boxes.new_tensor([self.size[1], self.size[0]] * 2)
        scale = boxes.new_tensor([width / inner_width, height / inner_height] * 2)
        return ((boxes * sides - boxes.new_tensor([left, top] * 2)) * scale).float()


class BoxTransform:
    """Image and boxes -> model input and boxes in 0..1, for training or evaluation.

    Args:
        preprocess: size, mean, std and interpolation of the base.
        shape: see :class:`Fit`.
        augment: ``none``; ``color``: brightness, contrast, saturation (not hue: texts name colours); ``crop``: the
            same, and a crop around all boxes that keeps at least three quarters of each side.
    """

    def __init__(self, preprocess: Preprocess, shape: Shape = "squash", augment: Augment = "none") -> None:
        height, width = preprocess.size
        self.fit = Fit((height, width), shape, preprocess.fill_color)
        self.mode = InterpolationMode(preprocess.interpolation)
        self.augment = augment
        self.color = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
        self.tensor = v2.Compose(
            [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocess.mean, preprocess.std)]
        )

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """RGB image and its boxes [n, 4] in pixels (n may be 0) -> [3, H, W] float32 and [n, 4] float32 in 0..1."""
        boxes = with_boxes(image.size, boxes)
        if self.augment == "crop":
            image, boxes = crop_around(image, boxes)
        if self.augment != "none":
            image = self.color(image)
        image, boxes = self.fit.place(image, boxes, self.mode)
        return self.tensor(image), self._shares(boxes)

    def boxes_alone(self, size: tuple[int, int], boxes: Tensor) -> Tensor:
        """Transformed boxes of an image of ``size`` (width, height) without augmentation."""
        return self._shares(self.fit.place_boxes(with_boxes(size, boxes), size))

    def _shares(self, boxes: Tensor) -> Tensor:
        return boxes.as_subclass(Tensor) / torch.tensor([self.fit.size[1], self.fit.size[0]] * 2)


def with_boxes(size: tuple[int, int], boxes: Tensor) -> tv_tensors.BoundingBoxes:
    """Boxes in an image of ``size`` (width, height), as torchvision's transforms take them."""
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return cast(Any, tv_tensors.BoundingBoxes)(corners, format="XYXY", canvas_size=size[::-1])


def crop_around(image: Image.Image, boxes: Tensor) -> Boxed:
    """A random crop that contains every box entirely and at least :data:`LEAST_KEPT` of each side."""
    corners = boxes.as_subclass(Tensor)
    edges = []
    for axis, size in ((0, image.width), (1, image.height)):
        low, high = size, 0
        if len(corners):
            low = max(0, int(corners[:, axis].min().floor()))
            high = min(size, int(corners[:, axis + 2].max().ceil()))
        spare = size - round(LEAST_KEPT * size)
        first = random.randint(0, min(spare, low))
        last = random.randint(max(high, size - (spare - first)), size)
        edges.append((first, last - first))
    (left, width), (top, height) = edges
    return VF.crop(image, top, left, height, width), VF.crop(boxes, top, left, height, width)


def flip(image: Image.Image, boxes: Tensor, texts: Sequence[str]) -> tuple[Image.Image, Tensor, list[str]] | None:
    """Image, boxes and texts, mirrored; None if one of the texts cannot be mirrored."""
    swapped = [other for text in texts if (other := mirrored(text)) is not None]
    if len(swapped) < len(texts):
        return None
    return VF.horizontal_flip(image), VF.horizontal_flip(with_boxes(image.size, boxes)), swapped


@dataclass(frozen=True)
class BoxedImage:
    """One image with some of the texts about it.

    Attributes:
        pixels: [3, H, W] float32, or the example's index (:meth:`BoxedImages.unopened`).
        texts: expressions to find.
        boxes: for each text [g, 4] float32, x1, y1, x2, y2 as shares of the input (0..1).
    """

    pixels: Tensor | int
    texts: list[str]
    boxes: list[Tensor]


class BoxedImages:
    """Images with up to ``texts`` expressions each; an image with more becomes several examples.

    Args:
        dataset: a prepared dataset of task ``grounding``.
        split: which split.
        transform: image and boxes -> input.
        texts: most expressions per example; their image is encoded once for all of them.
        flip: mirror half of the images, and swap "left" and "right" in their texts.
        several: keep all boxes of a text (records with ``boxes``) instead of only ``box``.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        transform: BoxTransform,
        texts: int = 8,
        flip: bool = False,
        several: bool = False,
    ) -> None:
        self.dataset, self.transform, self.flip, self.several = dataset, transform, flip, several
        groups: dict[str, list[dict[str, Any]]] = {}
        for record in dataset.records(split):
            groups.setdefault(record["image"], []).append(record)
        self.examples = [own[i : i + texts] for own in groups.values() for i in range(0, len(own), texts)]
        self.count = sum(map(len, self.examples))
        self._moved: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> BoxedImage:
        """The image with its texts and boxes; augmentation uses the global generators."""
        records = self.examples[index]
        image = read_image(self.dataset, records[0])
        records = [in_file_pixels(record, image.size) for record in records]
        texts = [record["text"] for record in records]
        boxes = [boxes_of(record, self.several) for record in records]
        joined, counts = torch.cat(boxes), [len(own) for own in boxes]
        if self.flip and random.random() < 0.5:
            image, joined, texts = flip(image, joined, texts) or (image, joined, texts)
        pixels, joined = self.transform(image, joined)
        return BoxedImage(pixels, texts, list(joined.split(counts)))

    # --- for training with --cache: see vlkit.tap_cache.images.ImagesWithTexts ---

    def unopened(self, index: int) -> BoxedImage:
        """The example with its index in place of pixels; not augmented, not mirrored."""
        if index not in self._moved:
            self._moved[index] = self._moved_boxes(index)
        return BoxedImage(index, [record["text"] for record in self.examples[index]], list(self._moved[index]))

    def _moved_boxes(self, index: int) -> list[Tensor]:
        """For each text of an example the transformed boxes; reads the header of the image's file."""
        size = record_image_size(self.dataset, self.examples[index][0])
        boxes = [boxes_of(in_file_pixels(record, size), self.several) for record in self.examples[index]]
        return list(self.transform.boxes_alone(size, torch.cat(boxes)).split([len(own) for own in boxes]))

    @property
    def image_count(self) -> int:
        """One image per example."""
        return len(self)

    @property
    def texts(self) -> list[str]:
        """The texts of all examples."""
        return [record["text"] for records in self.examples for record in records]

    def identify(self, index: int) -> list[Any]:
        """A value that changes when the example's image changes; examples of one image share it."""
        return identify_file(self.dataset.path(self.examples[index][0]))

    def load(self, indices: list[int]) -> Tensor:
        """Images of examples, [n, 3, H, W]; deterministic without augmentation."""
        images = (read_image(self.dataset, self.examples[index][0]) for index in indices)
        return torch.stack([self.transform(image, torch.empty(0, 4))[0] for image in images])


def in_their_files(dataset: Dataset, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with their boxes in the pixels of their files (:func:`vlkit.data.boxes.in_file_pixels`). File
    headers are read for records that state a size.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for record in records:
        if record["image"] not in sizes and stated_size(record):
            sizes[record["image"]] = record_image_size(dataset, record)
    return [in_file_pixels(one, sizes[one["image"]]) if one["image"] in sizes else one for one in records]


def boxes_of(record: dict[str, Any], several: bool = True) -> Tensor:
    """Boxes of a record in file pixels, float32 [g, 4]: all of ``boxes`` if the record has them and ``several`` is
    true, else ``box``.
    """
    values = record.get("boxes") if several else None
    return torch.tensor(values or [record["box"]], dtype=torch.float32)


class BoxBatch(NamedTuple):
    """P images and B texts about them."""

    pixels: Tensor | TapBatch
    """[P, 3, H, W] float32, or the cache rows of P images."""
    ids: Tensor | TapBatch
    """[B, L] int64, or the cache rows of B texts."""
    owner: Tensor
    """[B] int64, the image of each text."""
    boxes: Tensor
    """[B, G, 4] float32, x1, y1, x2, y2 in 0..1, padded with zeros."""
    valid: Tensor
    """[B, G] bool, True = a real box, not padding."""


class BoxCollate:
    """Examples of :class:`BoxedImages` -> :class:`BoxBatch`.

    Args:
        tokenize: texts -> ids [B, L], without columns that hold only padding.
        stack: the examples' pixels (or indices) -> the batch's ``pixels``.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor | TapBatch],
        stack: Callable[[list[Any]], Tensor | TapBatch] = torch.stack,
    ) -> None:
        self.tokenize, self.stack = tokenize, stack

    def __call__(self, examples: list[BoxedImage]) -> BoxBatch:
        owner = [i for i, example in enumerate(examples) for _ in example.texts]
        own = [boxes for example in examples for boxes in example.boxes]
        return BoxBatch(
            self.stack([example.pixels for example in examples]),
            self.tokenize([text for example in examples for text in example.texts]),
            torch.tensor(owner),
            torch.nn.utils.rnn.pad_sequence(own, batch_first=True),
            torch.nn.utils.rnn.pad_sequence([boxes.new_ones(len(boxes), dtype=torch.bool) for boxes in own], True),
        )
