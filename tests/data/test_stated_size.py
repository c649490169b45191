"""Boxes of images whose file is a resized copy of what was annotated, or cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkit.data.boxes import box_problem, corners_of, file_problem, in_file_pixels
from vlkit.data.check import check_dataset
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.bases import Preprocess
from vlkit.errors import UserError
from vlkit.tasks.grounding.baseline import blind_boxes
from vlkit.tasks.grounding.data import BoxedImages, BoxTransform, in_their_files

PLAIN = Preprocess((64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")


def record(width: float | None = 640, height: float | None = 480, **more) -> dict:
    size = {"width": width, "height": height} if width is not None else {}
    return {"id": "ref/1", "image": "a.png", "text": "the dog", "box": [64.0, 48.0, 320.0, 240.0], **size, **more}


@pytest.mark.parametrize("size", [(320, 240), (1280, 960), (213, 160), (333, 250), (639, 480), (32, 24)])
def test_boxes_are_scaled_where_only_the_scale_differs(size):
    scaled = in_file_pixels(record(boxes=[[0.0, 0.0, 640.0, 480.0]]), size)
    width, height = size
    assert scaled["box"] == pytest.approx([width / 10, height / 10, width / 2, height / 2])
    assert scaled["boxes"][0] == pytest.approx([0, 0, width, height])
    assert (scaled["width"], scaled["height"]) == size and file_problem(record(), size) is None
    # Once in file pixels they stay as they are.
    assert in_file_pixels(scaled, size) is scaled


def test_records_of_the_same_size_or_none_come_back_as_they_are():
    for one in (record(), record(640.0, 480.0), record(None)):
        assert in_file_pixels(one, (640, 480)) is one


@pytest.mark.parametrize(
    ("stated", "size", "problem"),
    [
        ((640, 480), (480, 640), "transposed"),
        ((640, 480), (240, 320), "transposed"),
        ((97, 96), (96, 97), "transposed"),
        ((640, 480), (480, 480), "not a resized copy of the same image"),
        ((640, 480), (224, 224), "not a resized copy of the same image"),
        ((640, 480), (640, 420), "not a resized copy of the same image"),
    ],
)
def test_sizes_that_cannot_be_one_image_are_named(stated, size, problem):
    one = {**record(*stated), "box": [4.0, 8.0, 30.0, 40.0]}
    assert problem in file_problem(one, size)
    with pytest.raises(UserError, match=rf"a\.png \(record 'ref/1'\): .*{stated[0]} x {stated[1]} .*{problem}"):
        in_file_pixels(one, size)


def test_box_geometry():
    assert corners_of([10, 20, 30.5, 40.25]) == [10, 20, 40.5, 60.25]
    assert box_problem([0, 0, 641, 481], 640, 480) is None
    assert "outside the image of 640 x 480" in box_problem([0, 0, 641.5, 480], 640, 480)


def dataset(folder: Path, sizes: list[tuple[int, int]], stated: list[tuple[int, int] | None], exif: int = 1) -> Dataset:
    """Images with a white block that covers the same share of each, and its box in the stated pixels."""
    records = []
    for number, (size, own) in enumerate(zip(sizes, stated, strict=True)):
        drawn = np.zeros((size[1], size[0], 3), np.uint8)
        drawn[size[1] // 4 : size[1] // 2, size[0] // 8 : size[0] // 2] = 255
        tag = Image.Exif()
        tag[0x0112] = exif
        folder.mkdir(exist_ok=True)
        Image.fromarray(drawn).save(folder / f"{number}.png", exif=tag)
        width, height = own or size
        one = {"id": f"ref/{number}", "image": f"{number}.png", "text": "the block"}
        one["box"] = [width / 8, height / 4, width / 2, height / 2]
        records.append(one | ({"width": own[0], "height": own[1]} if own else {}))
    return write_dataset(folder, name="x", task="grounding", splits={"train": records}, media_root=".", source=None)


@pytest.mark.parametrize("shape", ["squash", "letterbox"])
def test_training_decoded_or_cached_sees_the_same_boxes(tmp_path, shape):
    """The file as annotated, a smaller and a larger copy, and a record that states no size: one box."""
    sizes = [(96, 64), (48, 32), (192, 128), (96, 64)]
    data = dataset(tmp_path / "d", sizes, [(96, 64), (96, 64), (96, 64), None])
    examples = BoxedImages(data, "train", BoxTransform(PLAIN, shape))
    expected = (
        [1 / 8, 1 / 4, 1 / 2, 1 / 2] if shape == "squash" else [1 / 8, (10 + 43 / 4) / 64, 1 / 2, (10 + 43 / 2) / 64]
    )
    for index in range(4):
        decoded, cached = examples[index].boxes[0][0], examples.unopened(index).boxes[0][0]
        assert decoded.tolist() == cached.tolist()
        assert decoded.tolist() == pytest.approx(expected, abs=0.01)
        x1, y1, x2, y2 = (decoded * 64).round().int().tolist()
        assert float(examples[index].pixels[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean()) == 1
    assert check_dataset(data, workers=1).problems == []
    placed = in_their_files(data, data.records("train"))
    assert [one["box"] for one in placed] == [[w / 8, h / 4, w / 2, h / 2] for w, h in sizes]
    assert blind_boxes(data, data.records("train"))["constant"].tolist() == [1 / 8, 1 / 4, 1 / 2, 1 / 2]


@pytest.mark.parametrize("exif", [1, 6])
def test_every_reader_names_a_transposed_size(tmp_path, exif):
    """Annotations of the stored pixels of a file that EXIF turns, or width and height in the wrong order."""
    stated = (96, 64) if exif == 6 else (64, 96)
    data = dataset(tmp_path / "d", [(96, 64)], [stated], exif)
    (problem,) = check_dataset(data, workers=1).problems
    assert "transposed" in problem.reason and problem.line == 1
    examples = BoxedImages(data, "train", BoxTransform(PLAIN))
    for read in (
        lambda: examples[0],
        lambda: examples.unopened(0),
        lambda: in_their_files(data, data.records("train")),
    ):
        with pytest.raises(UserError, match=r"0\.png .*transposed"):
            read()


def test_a_turned_file_whose_upright_size_is_stated_is_fine(tmp_path):
    data = dataset(tmp_path / "d", [(96, 64)], [(64, 96)], exif=6)
    assert check_dataset(data, workers=1).problems == []
    assert json.loads((tmp_path / "d" / "train.jsonl").read_text())["width"] == 64
    assert in_their_files(data, data.records("train")) == data.records("train")
