"""Very thin images: the middle is cut out before it is scaled."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vlkit.data.draw_boxes import draw_boxes
from vlkit.data.transforms import frame_transform, image_transform
from vlkit.encoders.bases import Preprocess
from vlkit.tasks.grounding.data import BoxTransform

SQUARE = Preprocess((224, 224), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")
WIDE = replace(SQUARE, size=(112, 224))


def thin(length: int, across: bool) -> Image.Image:
    """One pixel thick, with a red pixel in the middle of black."""
    line = np.zeros((1, length, 3), np.uint8)
    line[0, length // 2] = (255, 0, 0)
    return Image.fromarray(line if across else line.transpose(1, 0, 2).copy())


@pytest.mark.parametrize("preprocess", [SQUARE, WIDE, *(replace(SQUARE, resize_mode=m) for m in ("squash", "longest"))])
@pytest.mark.parametrize("augment", ["none", "crop", "flip", "frame"])
@pytest.mark.parametrize("across", [True, False])
def test_they_take_no_more_memory_than_others(preprocess, augment, across, monkeypatch):
    largest = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *a, **k: largest.append(size[0] * size[1]) or resize(self, size, *a, **k),
    )
    transform = frame_transform(preprocess) if augment == "frame" else image_transform(preprocess, augment)
    tracemalloc.start()
    pixels = transform(thin(60_001, across))
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    assert pixels.shape == (3, *preprocess.size) and max(largest) <= 40 * 224 * 224


def test_the_middle_is_what_is_seen():
    pixels = image_transform(SQUARE)(thin(10_001, True))
    assert float(pixels[0].mean()) > 0.8 and float(pixels[1].max()) < 0.01


@pytest.mark.parametrize("size", [(640, 480), (31, 97), (3000, 200), (200, 3000), (224, 224), (33, 500)])
def test_others_are_prepared_to_the_bit_as_before(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    plain = v2.Compose(
        [v2.Resize(224, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop([224, 224]), v2.PILToTensor()]
    )
    assert torch.equal(frame_transform(SQUARE)(image), plain(image))


@pytest.mark.parametrize("shape", ["squash", "letterbox"])
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_grounding_fits_them_in(shape, augment):
    pixels, boxes = BoxTransform(SQUARE, shape, augment)(thin(10_000, True), torch.tensor([[0.0, 0.0, 5000.0, 1.0]]))
    assert pixels.shape == (3, 224, 224) and boxes.shape == (1, 4)


@pytest.mark.parametrize("across", [True, False])
def test_they_can_be_drawn_on(across):
    image = thin(10_000, across)
    drawn = draw_boxes(image, [[0.0, 0.0, *image.size]], "a thin line of words")
    assert drawn.width * drawn.height < 20_000_000
