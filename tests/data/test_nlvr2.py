"""NLVR2: official lines, pairs of images joined into one, and its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.scripts import call, refuse
from vlkit.data.images import open_image
from vlkit.data.manifest import Dataset
from vlkit.data.sources.nlvr2 import SIDE, side_by_side
from vlkit.tasks.vqa.evaluate import score

SCRIPT = "data_prep/nlvr2.py"


def line(identifier: str, label: str = "True", **more: object) -> str:
    return json.dumps({"identifier": identifier, "sentence": f"A dog {identifier[-1]}.", "label": label, **more})


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Two training pairs in a numbered folder, one dev pair; each left image red, each right one blue."""
    lines = {
        "train": [line("train-1-0-0", directory=36), line("train-1-1-0", "False", directory=36)],
        "dev": [line("dev-7-0-0"), line("dev-7-0-1", "False")],
    }
    for name, rows in lines.items():
        (tmp_path / f"{name}.json").write_text("\n".join(rows) + "\n")
    for folder, pairs in (("images/train/36", ("train-1-0", "train-1-1")), ("dev", ("dev-7-0",))):
        (tmp_path / "files" / folder).mkdir(parents=True)
        for pair in pairs:
            for place, (colour, size) in enumerate((("red", (40, 30)), ("blue", (10, 60)))):
                Image.new("RGB", size, colour).save(tmp_path / "files" / folder / f"{pair}-img{place}.png")
    return tmp_path


def words(root: Path, *more: object) -> tuple:
    files = ("--sentences", root / "train.json", root / "dev.json")
    return (SCRIPT, *files, "--images", root / "files", "--output", root / "out", *more)


def test_pairs_become_one_image_with_its_sentences(official, capsys):
    call(*words(official))
    found = Dataset.open(official / "out", "vqa")
    assert {split: entry["records"] for split, entry in found.splits.items()} == {"train": 2, "val": 2}
    first, second = found.records("val")
    assert first["image"] == second["image"] == "dev-7-0.jpg" and second["question"] == "A dog 1."
    assert (first["answers"], second["answers"]) == (["true"] * 10, ["false"] * 10)
    assert first["question_id"] == "dev-7-0-0" and "directory" not in found.records("train")[0]
    image = np.asarray(open_image(found.path(first)))
    assert image.shape == (SIDE, SIDE, 3)
    np.testing.assert_allclose([image[224, 110], image[224, 334]], [[255, 0, 0], [0, 0, 255]], atol=8)
    assert "joined side by side" in capsys.readouterr().out


def test_images_keep_their_shape_in_their_half():
    joined = np.asarray(side_by_side(Image.new("RGB", (40, 30), "red"), Image.new("RGB", (10, 60), "blue")))
    for channel, (rows, columns) in ((0, (165, 220)), (2, (448, 75))):
        where = np.argwhere(joined[..., channel] > 128)
        height, width = np.ptp(where, axis=0) + 1
        assert abs(height - rows) <= 1 and abs(width - columns) <= 1
        assert (where[:, 1].max() < 220) if channel == 0 else (where[:, 1].min() >= 228)


def test_missing_images_stop_or_are_left_out(official):
    (official / "files" / "images" / "train" / "36" / "train-1-1-img1.png").unlink()
    assert (
        "1 of 3 pairs cannot be joined" in refuse(*words(official)) and not (official / "out" / "dataset.json").exists()
    )
    call(*words(official, "--partial"))
    found = Dataset.open(official / "out")
    assert [record["question_id"] for record in found.records("train")] == ["train-1-0-0"]
    assert (official / "out" / "missing.txt").read_text() == "train-1-1.jpg\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "train.json:1: not a JSON object"),
        (line("train-1-0-0") + "\n\n", "train.json:2: the line is empty"),
        (line("train-1-0"), "has not the form split-set-pair-sentence"),
        (line("train-1-0-0", "maybe"), "field \"label\" is 'maybe'"),
        (line("train-1-0-0") + "\n" + line("train-1-0-0"), "train.json:2: identifier train-1-0-0 is already in"),
        ('{"identifier": "train-1-0-0"}', 'field "sentence" is missing'),
    ],
)
def test_wrong_lines_are_named(official, text, part):
    (official / "train.json").write_text(text)
    assert part in refuse(*words(official))


def test_evaluation_adds_consistency():
    def record(name: str, label: str) -> dict:
        return {"id": f"nlvr2/{name}", "question_id": name, "answers": [label] * 10}

    rows = [record("dev-1-0-0", "true"), record("dev-1-1-0", "false"), record("dev-2-0-0", "true")]
    found = score(rows, {"dev-1-0-0": "True", "dev-1-1-0": "true", "dev-2-0-0": "true"})
    assert found["accuracy"] == pytest.approx(200 / 3, abs=0.01) and found["consistency"] == 50
    assert "consistency" not in score([{**rows[0], "id": "vqa/1"}], {"dev-1-0-0": "true"})
