"""VQA v2's official files -> records, and what is said about wrong ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlkit.data.check import check_dataset
from vlkit.data.sources import vqav2
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError

ROOT = Path(__file__).parents[2]
ANSWERS = ["net"] * 7 + ["Netting", "mesh", "a net"]


def answer_list(answers: list[str]) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]


def questions(subtype: str = "train2014", ids: tuple[int, ...] = (262148, 42)) -> dict[str, Any]:
    entries = [
        {"image_id": i, "question": f"What is on {i}?", "question_id": i * 1000 + k} for i in ids for k in (0, 1)
    ]
    return {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": subtype, "questions": entries}


def annotations(asked: dict[str, Any]) -> dict[str, Any]:
    entries = [
        {
            "question_type": "what is on",
            "multiple_choice_answer": "net",
            "answers": answer_list(ANSWERS),
            "image_id": question["image_id"],
            "answer_type": "other",
            "question_id": question["question_id"],
        }
        for question in reversed(asked["questions"])  # the two lists need not be in one order
    ]
    return {"info": {}, "data_subtype": asked["data_subtype"], "annotations": entries}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def pair(folder: Path, asked: dict[str, Any] | None = None, answered: dict[str, Any] | None = None) -> list[list[Path]]:
    asked = asked or questions()
    subtype = asked["data_subtype"]
    return [
        [write(folder, f"v2_OpenEnded_mscoco_{subtype}_questions.json", asked)],
        [write(folder, f"v2_mscoco_{subtype}_annotations.json", answered or annotations(asked))],
    ]


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    source = vqav2.read(*pair(tmp_path))
    assert (source.name, source.task, source.counts) == ("vqav2", "vqa", {"train": (2, 4)})
    assert source.splits["train"][1] == {
        "id": "vqa/262148001",
        "question_id": 262148001,
        "image": "train2014/COCO_train2014_000000262148.jpg",
        "question": "What is on 262148?",
        "answers": ANSWERS,
        "question_type": "what is on",
        "answer_type": "other",
        "multiple_choice_answer": "net",
    }
    assert [r["question_id"] for r in source.splits["train"]] == [262148000, 262148001, 42000, 42001]


def test_splits_come_in_order_and_test_has_no_answers(tmp_path: Path) -> None:
    files = {
        subtype: questions(subtype, (number,)) for number, subtype in enumerate(("test2015", "val2014", "train2014"))
    }
    pairs = {subtype: pair(tmp_path, content) for subtype, content in files.items()}
    test_dev = write(tmp_path, "v2_OpenEnded_mscoco_test-dev2015_questions.json", questions("test2015", (7,)))
    asked = [p[0][0] for p in pairs.values()] + [test_dev]
    source = vqav2.read(asked, [pairs["train2014"][1][0], pairs["val2014"][1][0]])
    assert list(source.splits) == ["train", "val", "test", "test-dev"]
    assert "answers" not in source.splits["test"][0]
    assert source.splits["test-dev"][0]["image"] == "test2015/COCO_test2015_000000000007.jpg"
    assert [note for note in source.notes if '"test"' in note and "hidden" in note]


def test_ids_written_as_texts_are_taken(tmp_path: Path) -> None:
    asked = questions()
    answered = annotations(asked)
    for entry in (*asked["questions"], *answered["annotations"]):
        entry["question_id"], entry["image_id"] = str(entry["question_id"]), f"{entry['image_id']:012d}"
    records = vqav2.read(*pair(tmp_path, asked, answered)).splits["train"]
    assert records[0]["question_id"] == 262148000 and records[0]["image"].endswith("000000262148.jpg")


@pytest.mark.parametrize(
    ("subtype", "name"),
    [
        ("train2014", "train2014/COCO_train2014_{}.jpg"),
        ("train2014", "COCO_train2014_{}.jpg"),
        ("train2014", "train2017/{}.jpg"),
        ("train2014", "{}.jpg"),
        ("val2017", "val2017/{}.jpg"),
        ("val2017", "val2017/COCO_val2017_{}.jpg"),
        ("test2015", "test2015/{}.jpg"),
    ],
)
def test_images_are_found_where_the_releases_have_them(tmp_path: Path, subtype: str, name: str) -> None:
    asked = questions(subtype)
    files = pair(tmp_path, asked)
    images = write_images(tmp_path / "images", *(name.format(f"{i:012d}") for i in (262148, 42)))
    dataset = prepare(vqav2.read(*files), tmp_path / "data", images).dataset
    assert check_dataset(dataset, workers=1).problems == []
    (split,) = dataset.splits
    assert dataset.records(split)[0]["image"] == name.format("000000262148")


def test_missing_image_stops_or_is_left_out(tmp_path: Path) -> None:
    source = vqav2.read(*pair(tmp_path))
    images = write_images(tmp_path / "images", "train2014/COCO_train2014_000000000042.jpg")
    with pytest.raises(UserError, match=r"1 of 2 images.*000000262148"):
        prepare(source, tmp_path / "data", images)
    prepared = prepare(source, tmp_path / "data", images, partial=True)
    assert [r["question_id"] for r in prepared.dataset.records("train")] == [42000, 42001]
    assert "000000262148" in (tmp_path / "data" / "missing.txt").read_text()


Entries = list[Any]


@pytest.mark.parametrize(
    ("where", "spoil", "message"),
    [
        ("questions", lambda e: e[0].pop("image_id"), r'questions\[0\]: field "image_id" is missing'),
        ("questions", lambda e: e[0].update(question_id="abc"), r"questions\[0\]: field \"question_id\" is 'abc'"),
        ("questions", lambda e: e[0].update(question_id=True), r'questions\[0\]: field "question_id"'),
        ("questions", lambda e: e[1].update(question_id=262148000), r"questions\[1\].*262148000 occurs twice"),
        ("questions", lambda e: e[0].update(question="  "), r'questions\[0\]: field "question" is blank'),
        ("questions", lambda e: e[0].update(question=None), r'questions\[0\]: field "question" is not of type str'),
        ("questions", lambda e: e.insert(0, 5), r"questions\[0\]: not a JSON object"),
        ("questions", lambda e: e.clear(), "holds no questions"),
        (
            "annotations",
            lambda e: e[0]["answers"].pop(),
            r'annotations\[0\]: field "answers" has 9 answers, expected 10',
        ),
        (
            "annotations",
            lambda e: e[0]["answers"][2].update(answer=3),
            r'annotations\[0\].answers\[2\]: field "answer"',
        ),
        (
            "annotations",
            lambda e: e[0].update(image_id=9),
            r'questions\[3\]: field "image_id" is 42, its annotation says 9',
        ),
        ("annotations", lambda e: e.pop(0), r"questions\[3\]: question 42001 has no answers in .*annotations.json"),
        ("annotations", lambda e: e.append(e[0]), r"annotations\[4\].*42001 occurs twice"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, where: str, spoil: Callable[[Entries], Any], message: str) -> None:
    asked = questions()
    answered = annotations(asked)
    spoil(asked["questions"] if where == "questions" else answered["annotations"])
    with pytest.raises(UserError, match=message) as caught:
        vqav2.read(*pair(tmp_path, asked, answered))
    assert "train2014" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    asked, answered = pair(tmp_path)
    with pytest.raises(UserError, match="training needs answers"):
        vqav2.read(asked)
    with pytest.raises(UserError, match="holds annotations, not questions; give it as --annotations"):
        vqav2.read(answered, asked)
    with pytest.raises(UserError, match='split "train" comes from'):
        vqav2.read([*asked, *asked], answered)
    val = pair(tmp_path, questions("val2014"))
    with pytest.raises(UserError, match="annotations without questions"):
        vqav2.read(asked, [*answered, *val[1]])
    nameless = write(tmp_path, "mine.json", {**questions(), "data_subtype": None})
    with pytest.raises(UserError, match='neither field "data_subtype" nor the file name gives a split'):
        vqav2.read([nameless], answered)


def test_annotations_of_more_questions_are_noted(tmp_path: Path) -> None:
    asked = questions()
    answered = annotations(asked)
    asked["questions"] = asked["questions"][:3]
    source = vqav2.read(*pair(tmp_path, asked, answered))
    assert len(source.splits["train"]) == 3 and "1 annotations" in source.notes[0]


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "data_prep/vqav2.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_script_writes_the_dataset_and_names_what_is_wrong(tmp_path: Path) -> None:
    asked, answered = pair(tmp_path)
    images = write_images(tmp_path, *(f"train2014/COCO_train2014_{i:012d}.jpg" for i in (262148, 42)))
    flags = ["--questions", asked[0], "--annotations", answered[0], "--images", images]
    done = run_script(*flags, "--output", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and (tmp_path / "data" / "dataset.json").is_file()
    answered[0].write_text("{")
    done = run_script(*flags, "--output", tmp_path / "other")
    assert done.returncode == 2 and str(answered[0]) in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "other").exists()
