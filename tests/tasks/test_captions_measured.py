"""How many captions of an image are measured: all, but five on COCO and Flickr30k; and folds of images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.scripts import call
from vlkit.data.check import check_dataset, write_clean
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.sources import folder
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError
from vlkit.tasks.retrieval.evaluate import (
    captions_left_out,
    captions_measured,
    embed_split,
    evaluate_split,
    retrieval_metrics,
)
from vlkit.tasks.retrieval.pipeline import load_zero_shot

EVALUATE = "tasks/retrieval/evaluate.py"


def dataset(root: Path, name: str, counts: tuple[int, ...] = (7, 5, 2)) -> Dataset:
    """Images with so many captions each."""
    records = []
    for i, count in enumerate(counts):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(root / f"{i}.png")
        records.append({"id": str(i), "image": f"{i}.png", "texts": [f"dog {i} {k}" for k in range(count)]})
    return write_dataset(root, name=name, task="retrieval", splits={"test": records}, media_root=root, source="x")


@pytest.mark.parametrize(
    ("name", "counts"), [("own", [7, 5, 2]), ("msvd", [7, 5, 2]), ("coco", [5, 5, 2]), ("flickr30k", [5, 5, 2])]
)
def test_five_captions_are_a_rule_of_two_datasets(tmp_path: Path, name: str, counts: list[int]) -> None:
    own = dataset(tmp_path, name)
    _, texts, owner = embed_split(load_zero_shot("tiny", "cpu").embedder, own, "test")
    assert len(texts) == sum(counts) and np.bincount(owner).tolist() == counts
    left = captions_left_out(own, "test")
    assert left.startswith(f"2 of 14 captions of {name}/test are left out") == (sum(counts) == 12)
    assert bool(left) == (sum(counts) == 12)


def test_training_says_once_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    embedder = load_zero_shot("tiny", "cpu").embedder
    for name in ("coco", "own"):
        (tmp_path / name).mkdir()
        for _ in range(2):
            evaluate_split(embedder, dataset(tmp_path / name, name, (6, 1)), "test")
    lines = [record.message.partition(":")[0] for record in caplog.records if "left out" in record.message]
    assert lines == ["1 of 7 captions of coco/test are left out"]


def test_a_folder_called_coco_is_not_coco(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "coco" / "a.png")
    (tmp_path / "coco" / "a.txt").write_text("\n".join("abcdefg"))
    own = prepare(folder.read(tmp_path / "coco", val=0, test=0), tmp_path / "out", tmp_path / "coco").dataset
    assert own.name == "coco" and captions_measured(own) is None
    write_clean(check_dataset(own, workers=1), tmp_path / "clean")
    assert captions_measured(Dataset.open(tmp_path / "clean")) is None
    assert captions_measured(Dataset(own.root, "coco", "retrieval", own.media_root, own.splits, {"cleaned": "x"})) == 5


def test_the_script_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dataset(tmp_path, "coco")
    call(EVALUATE, "--base", "tiny", "--data.root", tmp_path)
    assert "2 of 14 captions of coco/test are left out" in capsys.readouterr().out


@pytest.mark.parametrize("folds", [0, -1])
def test_folds_below_one_are_refused_before_anything_is_measured(tmp_path: Path, folds: int) -> None:
    with pytest.raises(UserError, match=f"--folds {folds}: must be at least 1"):
        call(EVALUATE, "--base", "none-such", "--folds", folds, "--data.root", tmp_path)
    with pytest.raises(UserError, match=f"folds={folds}: must be at least 1"):
        retrieval_metrics(torch.eye(2), torch.eye(2), np.arange(2), folds)
