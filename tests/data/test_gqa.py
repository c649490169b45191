"""GQA's official files -> records, and what is said about wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.scripts import call, launch
from vlkit.data.check import check_dataset
from vlkit.data.manifest import Dataset
from vlkit.data.sources import gqa
from vlkit.errors import UserError
from vlkit.metrics.vqa import vqa_metrics
from vlkit.tasks.vqa.data import answer_vocabulary

PREPARE = "data_prep/gqa.py"


def question(image: str = "2000001", answer: str | None = "t-shirt", **changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"imageId": image, "question": "What is next to the red sofa?", "isBalanced": True}
    if answer is not None:
        types = {"detailed": "relS", "semantic": "rel", "structural": "query"}
        entry |= {"answer": answer, "fullAnswer": f"It is a {answer}.", "types": types, "semantic": []}
    return {**entry, **changes}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_records_hold_what_the_file_says(tmp_path: Path):
    path = write(tmp_path, "train_balanced_questions.json", {"01234567": question(), "02": question("n123456", "no")})
    source = gqa.read([path])
    assert (source.name, source.task, source.counts) == ("gqa", "vqa", {"train": (2, 2)})
    assert source.splits["train"][0] == {
        "id": "gqa/01234567",
        "question_id": "01234567",
        "image": "2000001.jpg",
        "question": "What is next to the red sofa?",
        "answers": ["t-shirt"] * 10,
        "multiple_choice_answer": "t-shirt",
        "answer_type": "query",
        "question_type": "rel",
    }
    assert source.splits["train"][1]["image"] == "n123456.jpg"


def test_splits_come_in_order_and_hidden_answers_are_noted(tmp_path: Path):
    names = ("test_balanced", "testdev_balanced", "val_all", "train_balanced")
    paths = [
        write(tmp_path, f"{name}_questions.json", {name: question(answer=None if name.startswith("test_") else "yes")})
        for name in names
    ]
    source = gqa.read(paths)
    assert list(source.splits) == ["train", "val", "testdev", "test"]
    assert "answers" not in source.splits["test"][0] and any('"test" has no answers' in note for note in source.notes)


def test_a_split_in_several_files_is_read_from_its_folder(tmp_path: Path):
    for number in range(3):
        entry = {f"0{number}": question()}
        write(tmp_path, f"train_all_questions/train_all_questions_{number}.json", entry)
    assert [r["question_id"] for r in gqa.read([tmp_path / "train_all_questions"]).splits["train"]] == [
        "00",
        "01",
        "02",
    ]


def test_lists_of_the_lxmert_family_are_read(tmp_path: Path):
    entries = [{"img_id": "2000001", "label": {"lamp": 1.0}, "question_id": "0123", "sent": "What is it?"}]
    record = gqa.read([write(tmp_path, "valid.json", entries)]).splits["val"][0]
    assert (record["question_id"], record["image"], record["answers"]) == ("0123", "2000001.jpg", ["lamp"] * 10)


def test_answers_are_matched_exactly_and_the_vocabulary_keeps_them_as_they_are(tmp_path: Path):
    path = write(tmp_path, "train_balanced_questions.json", {"01": question(), "02": question(answer="yes")})
    call(PREPARE, "--questions", path, "--images", write_images(tmp_path, "2000001.jpg"), "--output", tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data", "vqa")
    assert answer_vocabulary(dataset, ["train"]) == ["t-shirt", "yes"]
    references = {record["question_id"]: record["answers"] for record in dataset.records("train")}
    assert vqa_metrics({"01": "t-shirt", "02": "Yes"}, references)["accuracy"] == 50
    assert vqa_metrics({"01": "t shirt", "02": "no"}, references)["accuracy"] == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda q: q["01"].pop("imageId"), 'question 01: field "imageId" is missing'),
        (lambda q: q["01"].update(question=" "), 'question 01: field "question" is blank'),
        (lambda q: q["02"].pop("answer"), 'question 02: field "answer" is missing'),
        (lambda q: q["02"].update(answer=7), 'question 02: field "answer" is not of type str'),
        (lambda q: q.update({"03": 5}), "question 03: not a JSON object"),
        (lambda q: q.clear(), "holds no questions"),
    ],
)
def test_wrong_questions_are_named(tmp_path: Path, spoil: Callable[[dict], Any], message: str):
    questions = {"01": question(), "02": question()}
    spoil(questions)
    path = write(tmp_path, "train_balanced_questions.json", questions)
    with pytest.raises(UserError, match=message) as caught:
        gqa.read([path])
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path):
    balanced = write(tmp_path, "val_balanced_questions.json", {"01": question()})
    everything = write(tmp_path, "val_all_questions.json", {"01": question()})
    with pytest.raises(UserError, match=r'split "val" comes from val_balanced_questions\.json too'):
        gqa.read([balanced, everything])
    with pytest.raises(UserError, match="name contains no split"):
        gqa.read([write(tmp_path, "mine.json", {"01": question()})])


def test_script_prepares_and_names_what_is_wrong(tmp_path: Path):
    path = write(tmp_path, "train_balanced_questions.json", {"01": question(), "02": question("77")})
    images = write_images(tmp_path / "download", "images/2000001.jpg")
    flags = ("--questions", path, "--images", images, "--output", tmp_path / "data")
    done = launch(PREPARE, *flags)
    assert done.returncode == 2 and "77.jpg" in done.stderr and "Traceback" not in done.stderr
    done = launch(PREPARE, *flags, "--partial")
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "data", "vqa")
    assert dataset.records("train")[0]["image"] == "images/2000001.jpg"
    assert check_dataset(dataset, workers=1).problems == []
