"""NLVR2: official lines, pairs of images, and its metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from helpers.scripts import call, launch, refuse
from vlkit.data.images import open_image
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.records import each_medium
from vlkit.errors import UserError
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


def test_a_sentence_has_both_images_of_its_pair(official):
    call(*words(official))
    found = Dataset.open(official / "out", "vqa")
    assert {split: entry["records"] for split, entry in found.splits.items()} == {"train": 2, "val": 2}
    assert {split: entry["media"] for split, entry in found.splits.items()} == {"train": 4, "val": 2}
    assert found.extra["images"] == 2
    first, second = found.records("val")
    assert (first["image"], first["image2"]) == ("dev/dev-7-0-img0.png", "dev/dev-7-0-img1.png")
    assert second["image"] == first["image"] and second["question"] == "A dog 1."
    assert (first["answers"], second["answers"]) == (["true"] * 10, ["false"] * 10)
    assert first["question_id"] == "dev-7-0-0"
    sizes = [open_image(found.path(each)).size for each in each_medium(found.records("train")[0], "vqa")]
    assert sizes == [(40, 30), (10, 60)]


@pytest.mark.parametrize("folder", ["", "train", "train/36", "images/train/36", "36"])
def test_images_are_found_without_some_of_the_official_folders(folder, official, tmp_path):
    copied = tmp_path / "copied" / folder
    copied.mkdir(parents=True)
    for file in sorted((official / "files").rglob("train-*.png")):
        shutil.copy(file, copied)
    call(SCRIPT, "--sentences", official / "train.json", "--images", tmp_path / "copied", "--output", tmp_path / "new")
    assert len(Dataset.open(tmp_path / "new").records("train")) == 2


def test_missing_images_stop_or_are_left_out(official):
    (official / "files" / "images" / "train" / "36" / "train-1-1-img1.png").unlink()
    message = refuse(*words(official))
    assert "1 of 6 images are not in" in message and "images/train/36/train-1-1-img1.png" in message
    assert not (official / "out" / "dataset.json").exists()
    call(*words(official, "--partial"))
    found = Dataset.open(official / "out")
    assert [record["question_id"] for record in found.records("train")] == ["train-1-0-0"]
    assert (official / "out" / "missing.txt").read_text() == "images/train/36/train-1-1-img1.png\n"


def test_the_check_opens_both_images(official):
    call(*words(official))
    (official / "files" / "dev" / "dev-7-0-img1.png").write_bytes(b"no image")
    printed = launch("data_prep/check.py", official / "out").stdout
    assert "4 records, 6 media opened, 2 problems" in printed and "val.jsonl:1: dev/dev-7-0-img1.png" in printed


@pytest.mark.parametrize(
    ("fields", "record", "part"),
    [
        ({"images": 2}, {}, 'record a: field "image2" is missing, and dataset.json says "images": 2'),
        ({}, {"image2": "b.png"}, 'record a: field "image2" is there, and dataset.json does not say'),
        ({"images": 3}, {}, 'field "images" is 3; expected is 1, or 2 for pairs'),
        ({"images": 2}, {"image2": "../b.png"}, "field \"image2\": '../b.png' leaves the media root"),
    ],
)
def test_records_and_dataset_agree_on_pairs(fields, record, part, tmp_path):
    records = [{"id": "a", "question_id": 1, "image": "a.png", "question": "So?", **record}]
    with pytest.raises(UserError) as refused:
        write_dataset(
            tmp_path, name="p", task="vqa", splits={"train": records}, media_root=tmp_path, source="", extra=fields
        )
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "train.json:1: not valid JSON"),
        (line("train-1-0-0") + "\n\n" + line("train-1-1-0"), "train.json:2: the line is empty"),
        (line("train-1-0"), "has not the form split-set-pair-sentence"),
        (line("train-1-0-0", "maybe"), "field \"label\" is 'maybe'"),
        (line("train-1-0-0") + "\n" + line("train-1-0-0"), "train.json:2: identifier train-1-0-0 is already in"),
        ('{"identifier": "train-1-0-0"}', 'field "sentence" is missing'),
    ],
)
def test_wrong_lines_are_named(official, text, part):
    (official / "train.json").write_text(text)
    assert part in refuse(*words(official))


def test_odd_characters_end_no_line(official):
    (official / "train.json").write_text(line("train-1-0-0", directory=36).replace("A dog", "A\u2028dog\x85") + "\n")
    call(*words(official))
    assert Dataset.open(official / "out").records("train")[0]["question"] == "A\u2028dog\x85 0."


def test_preprocessed_lists_are_read(official):
    rows = [json.loads(line) for line in (official / "dev.json").read_text().splitlines()]
    call(*words(official))
    expected = Dataset.open(official / "out").records("val")
    listed = [
        {"identifier": row["identifier"], "sent": row["sentence"], "label": int(row["label"] == "True"), "uid": "x"}
        | {f"img{i}": f"dev-7-0-img{i}" for i in (0, 1)}
        for row in rows
    ]
    (official / "dev.json").write_text(json.dumps(listed))
    call(*words(official))
    assert Dataset.open(official / "out").records("val") == expected
    (official / "dev.json").write_text(json.dumps([{**listed[0], "label": 2}]))
    assert 'dev.json: [0]: field "label" is 2; expected' in refuse(*words(official))


def test_evaluation_adds_consistency():
    def record(name: str, label: str) -> dict:
        return {"id": f"nlvr2/{name}", "question_id": name, "answers": [label] * 10}

    rows = [record("dev-1-0-0", "true"), record("dev-1-1-0", "false"), record("dev-2-0-0", "true")]
    found = score(rows, {"dev-1-0-0": "True", "dev-1-1-0": "true", "dev-2-0-0": "true"})
    assert found["accuracy"] == pytest.approx(200 / 3, abs=0.01) and found["consistency"] == 50
    assert "consistency" not in score([{**rows[0], "id": "vqa/1"}], {"dev-1-0-0": "true"})
