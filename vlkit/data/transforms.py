"""Transforms from images to tensors that match a base's preprocessing."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from vlkit.encoders.bases import Preprocess

VF: Any = functional  # its annotations name tensors alone, but images come in and go out

Augment = Literal["none", "crop", "flip", "wide"]

MOST_ASPECT = 16
"""Maximum aspect ratio of an image scaled for a centre crop; scaling 10,000 x 1 pixels would take gigabytes."""


def image_transform(preprocess: Preprocess, augment: Augment = "none") -> v2.Compose:
    """PIL RGB image -> [3, H, W] float32, normalised.

    Args:
        preprocess: size, mean, std, interpolation and resize mode of the base.
        augment: ``none``; ``crop``: random crop of 80 to 100 % of the area; ``flip``: crop and mirror half of the
            images (not for captions that say left or right); ``wide``: the same with 8 to 100 % of the area, as
            published for few-shot classification.
    """
    mode = InterpolationMode(preprocess.interpolation)
    size = list(preprocess.size)
    if augment == "none":
        steps = _fit(preprocess, size, mode)
    elif augment == "wide":
        steps = [v2.RandomResizedCrop(size, interpolation=mode, antialias=True), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.RandomResizedCrop(size, scale=(0.8, 1.0), ratio=(0.9, 1.1), interpolation=mode, antialias=True)]
        steps += [v2.RandomHorizontalFlip()] if augment == "flip" else []
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocess.mean, preprocess.std)]
    return v2.Compose([*steps, *tensor])


def frame_transform(preprocess: Preprocess) -> v2.Compose:
    """PIL RGB image -> [3, H, W] uint8, at the base's size; a quarter of the bytes of the model's float32 input."""
    mode = InterpolationMode(preprocess.interpolation)
    return v2.Compose([*_fit(preprocess, list(preprocess.size), mode), v2.PILToTensor()])


def _fit(preprocess: Preprocess, size: list[int], mode: InterpolationMode) -> list[v2.Transform]:
    """The evaluation path: the whole image (or its centre) at the base's size."""
    if preprocess.resize_mode == "squash":
        return [v2.Resize(size, mode, antialias=True)]
    if preprocess.resize_mode == "longest":
        return [LongestSide(size, mode, preprocess.fill_color)]
    if size[0] == size[1]:
        return [Middle(size), v2.Resize(size[0], mode, antialias=True), v2.CenterCrop(size)]
    return [Middle(size), ShortestSide(size, mode), v2.CenterCrop(size)]


class Middle(v2.Transform):
    """Cut the ends off a very thin image; its centre crop to ``size`` (height, width) shows only the middle.

    Images up to :data:`MOST_ASPECT` times as long as the crop are unchanged.
    """

    def __init__(self, size: list[int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Image.Image) -> Image.Image:
        """PIL -> PIL with the same centre."""
        sides = []
        for length, other, own, across in (
            (image.height, image.width, *self.size),
            (image.width, image.height, *reversed(self.size)),
        ):
            most = math.ceil(MOST_ASPECT * other * own / across)
            # Cut both ends equally, so that the centre stays between the same pixels.
            sides.append(length - 2 * ((length - most) // 2) if length > most else length)
        return image if sides == [image.height, image.width] else VF.center_crop(image, sides)


class LongestSide(v2.Transform):
    """Scale an image so that it fits into ``size`` and pad the rest evenly."""

    def __init__(self, size: list[int], mode: InterpolationMode, fill: int) -> None:
        super().__init__()
        self.size, self.mode, self.fill = size, mode, fill

    def forward(self, image: Image.Image) -> Image.Image:
        """PIL -> PIL of exactly ``size``."""
        scale = min(self.size[0] / image.height, self.size[1] / image.width)
        height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
        image = VF.resize(image, [height, width], self.mode, antialias=True)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        return VF.pad(image, [left, top, self.size[1] - width - left, self.size[0] - height - top], self.fill)


class ShortestSide(v2.Transform):
    """Scale an image so that it covers ``size`` (height, width); a centre crop cuts the rest."""

    def __init__(self, size: list[int], mode: InterpolationMode) -> None:
        super().__init__()
        self.size, self.mode = size, mode

    def forward(self, image: Image.Image) -> Image.Image:
        """PIL -> PIL at least as large as ``size``."""
        scale = max(self.size[0] / image.height, self.size[1] / image.width)
        sides = [max(self.size[0], round(image.height * scale)), max(self.size[1], round(image.width * scale))]
        return VF.resize(image, sides, self.mode, antialias=True)
