"""COCOeval of grounded boxes against a worked example, and boxes of COCO's masks."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask

from vlkit.data.masks import box_of_mask
from vlkit.errors import UserError
from vlkit.metrics.coco import coco_form, coco_metrics

RIGHT = [np.array([[10, 10, 30, 50]]), np.array([[0, 0, 8, 8], [20, 0, 30, 10]])]


def test_average_precision_of_a_worked_example() -> None:
    perfect = coco_form(["a", "b"], RIGHT, RIGHT, [np.array([0.9]), np.array([0.8, 0.1])])
    assert perfect.results[0] == {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 40], "score": 0.9}
    assert coco_metrics(perfect) == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})
    # The best scored box is wrong, the next one right: precision 1/2 up to a recall of 1/3, then nothing. The IoU of
    # the right one is 0.6, enough for 3 of the 10 thresholds.
    boxes = [np.array([[60, 60, 70, 70.0]]), np.array([[0, 0, 8, 4.8]])]
    found = coco_metrics(coco_form(["a", "b"], RIGHT, boxes, [np.array([0.9]), np.array([0.8])]))
    ap50 = 100 * (34 * 0.5) / 101  # recalls 0, 0.01, … 0.33
    assert found == pytest.approx({"ap": 0.3 * ap50, "ap50": ap50, "ap75": 0}, abs=1e-6)
    with pytest.raises(UserError, match="is the split empty"):
        coco_metrics(coco_form([], [], [], []))


def test_the_box_around_a_mask() -> None:
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[5:20, 10:30] = 1
    packed = mask.encode(np.asfortranarray(pixels))
    runs = np.flatnonzero(np.diff(np.r_[0, pixels.ravel(order="F"), 0]))
    plain = {"size": [40, 60], "counts": np.diff(np.r_[0, runs, pixels.size]).tolist()}
    corners = [[10, 5, 20, 5, 20, 20, 10, 20], [20, 5, 30, 5, 30, 20, 20, 20]]
    for form in (packed, {**packed, "counts": packed["counts"].decode()}, plain, corners):
        assert box_of_mask(form, 60, 40, "x.json") == [10, 5, 20, 15]
    # Sizes of 0 and values that are not finite end the process inside the library.
    fatal = ({"size": [0, 60], "counts": [100, 10]}, [[1, float("nan"), 3, 4, 5, 6]], [[float("inf")] * 6])
    for wrong in ("text", [], {"size": [40, 60]}, [[1, 2]], {"size": [4, 4], "counts": [16]}, *fatal):
        with pytest.raises(UserError, match=r'x\.json: annotations\[0\]: field "segmentation" is'):
            box_of_mask(wrong, 60, 40, "x.json: annotations[0]")
