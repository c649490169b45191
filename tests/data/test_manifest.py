"""Prepared datasets: reading, checking and writing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from vlkit.data import manifest
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.records import record_problem
from vlkit.errors import UserError

RETRIEVAL = {"id": "coco/1", "image": "val2014/x.jpg", "texts": ["a man rides", "a bike"]}
VIDEO = {"id": "msrvtt/video7", "video": "video7.mp4", "start": 0.0, "end": 12.4, "texts": ["a car"]}
VQA = {"id": "vqa/1", "question_id": 1, "image": "x.jpg", "question": "what is on?", "answers": ["net"] * 10}
GROUNDING = {"id": "ref/9", "image": "x.jpg", "text": "left bowl", "box": [468.3, 0.9, 640.0, 117.0]}
GOOD = {"retrieval": RETRIEVAL, "video_retrieval": VIDEO, "vqa": VQA, "grounding": GROUNDING}


def write(output: Path, records: list[dict], task: str = "retrieval", **options) -> Dataset:
    media = output.parent / "media"
    media.mkdir(parents=True, exist_ok=True)
    options = {"splits": {"train": records}, "media_root": media, "source": "test", **options}
    return write_dataset(output, name="made", task=task, **options)


def edit_manifest(root: Path, **fields) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("task", GOOD)
def test_written_dataset_reads_back_equal(tmp_path, task):
    other = {**GOOD[task], "id": "made/ü", **({"question_id": "q2"} if task == "vqa" else {})}
    written = write(tmp_path / "set", [GOOD[task], other], task, extra={"vocabulary": "answers.json"})
    dataset = Dataset.open(tmp_path / "set", task)
    assert dataset == written
    assert dataset.records("train") == [GOOD[task], other]
    assert dataset.path(other) == tmp_path / "media" / GOOD[task].get("image", GOOD[task].get("video"))
    assert dataset.extra == {"vocabulary": "answers.json"}
    fields = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert (fields["name"], fields["task"], fields["format"], fields["source"]) == ("made", task, 1, "test")
    assert fields["splits"]["train"]["file"] == "train.jsonl"
    assert fields["splits"]["train"]["records"] == 2


def test_hand_written_dataset_with_relative_media_root(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "images").mkdir()
    fields = {"name": "own", "task": "retrieval", "format": 1, "media_root": "../images", "source": None}
    fields["splits"] = {"test": {"file": "a.jsonl"}}
    (tmp_path / "set/dataset.json").write_text(json.dumps(fields))
    # A byte order mark, Windows line ends and blank lines are what editors leave behind.
    (tmp_path / "set/a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(RETRIEVAL).encode() + b"\r\n\r\n")
    dataset = Dataset.open(tmp_path / "set")
    assert dataset.records("test") == [RETRIEVAL]
    assert dataset.path(RETRIEVAL).resolve() == tmp_path / "images/val2014/x.jpg"


@pytest.mark.parametrize(
    ("task", "change", "field"),
    [
        ("retrieval", {"id": None}, "id"),
        ("retrieval", {"id": 7}, "id"),
        ("retrieval", {"image": None}, "image"),
        ("retrieval", {"image": "/etc/x.jpg"}, "image"),
        ("retrieval", {"image": "C:/x.jpg"}, "image"),
        ("retrieval", {"image": "a\\x.jpg"}, "image"),
        ("retrieval", {"image": "../x.jpg"}, "image"),
        ("retrieval", {"image": "link/../../x.jpg"}, "image"),
        ("retrieval", {"image": "a\0.jpg"}, "image"),
        ("retrieval", {"texts": None}, "texts"),
        ("retrieval", {"texts": []}, "texts"),
        ("retrieval", {"texts": "a man"}, "texts"),
        ("retrieval", {"texts": ["a man", " \n"]}, "texts[1]"),
        ("retrieval", {"texts": ["half \ud83d"]}, "texts[0]"),
        ("video_retrieval", {"video": ""}, "video"),
        ("video_retrieval", {"start": -1}, "start"),
        ("video_retrieval", {"start": 12.4}, "end"),
        ("video_retrieval", {"end": "12"}, "end"),
        ("video_retrieval", {"end": float("nan")}, "end"),
        ("vqa", {"question": "  "}, "question"),
        ("vqa", {"question_id": None}, "question_id"),
        ("vqa", {"question_id": True}, "question_id"),
        ("vqa", {"answers": ["net"] * 9}, "answers"),
        ("vqa", {"answers": ["net"] * 9 + [4]}, "answers[9]"),
        ("grounding", {"text": ""}, "text"),
        ("grounding", {"box": None}, "box"),
        ("grounding", {"box": [1, 2, 3]}, "box"),
        ("grounding", {"box": [1, 2, "3", 4]}, "box"),
        ("grounding", {"box": [10, 10, 5, 20]}, "box"),
        ("grounding", {"box": [10, 10, 10, 20]}, "box"),
        ("grounding", {"box": [-5, 0, 10, 20]}, "box"),
        ("grounding", {"box": [0, 0, float("inf"), 20]}, "box"),
        ("grounding", {"box": [0, 0, 10**400, 20]}, "box"),
        ("grounding", {"width": 600, "height": 400}, "box"),
        ("grounding", {"width": 0}, "width"),
    ],
)
def test_wrong_record_is_named_by_file_line_and_field(tmp_path, task, change, field):
    dataset = write(tmp_path / "set", [GOOD[task]], task)
    edit_manifest(tmp_path / "set", splits={"train": {"file": "train.jsonl"}})
    first = {**GOOD[task], "id": "first", **({"question_id": 0} if task == "vqa" else {})}
    wrong = {key: value for key, value in {**GOOD[task], **change}.items() if value is not None}
    path = dataset.split_file("train")
    path.write_text(f"{json.dumps(first)}\n\n{json.dumps(wrong)}\n")
    with pytest.raises(UserError) as error:
        Dataset.open(tmp_path / "set").records("train")
    message = str(error.value)
    assert message.startswith(f'{path}:3: field "{field}"')
    assert "\n" not in message


def test_optional_fields_may_be_absent():
    assert record_problem({key: VIDEO[key] for key in ("id", "video", "texts")}, "video_retrieval") is None
    assert record_problem({key: VQA[key] for key in ("id", "image", "question", "question_id")}, "vqa") is None
    assert record_problem({**RETRIEVAL, "anything": [1]}, "retrieval") is None
    assert record_problem({**GROUNDING, "box": [-0.4, 0, 640.3, 480], "width": 640, "height": 480}, "grounding") is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"id": "a"\n', ":1: not valid JSON"),
        (b"[1]\n", ":1: not a JSON object"),
        (b'{"id": "\xff"}\n', ":1: not UTF-8"),
        (b"", "holds no records"),
        (json.dumps(RETRIEVAL).encode() + b"\n" + json.dumps(RETRIEVAL).encode() + b"\n", ":2: field \"id\": 'coco/1'"),
    ],
)
def test_unreadable_file_is_named(tmp_path, lines, message):
    dataset = write(tmp_path / "set", [RETRIEVAL])
    dataset.split_file("train").write_bytes(lines)
    with pytest.raises(UserError) as error:
        dataset.records("train")
    assert str(error.value).startswith(str(dataset.split_file("train")))
    assert message in str(error.value)


def test_question_ids_are_unique(tmp_path):
    with pytest.raises(UserError, match="question_id"):
        write(tmp_path / "set", [VQA, {**VQA, "id": "vqa/2"}], "vqa")


def test_lost_lines_are_noticed(tmp_path):
    dataset = write(tmp_path / "set", [RETRIEVAL, {**RETRIEVAL, "id": "b"}])
    path = dataset.split_file("train")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"holds 1 records where dataset.json says 2"):
        dataset.records("train")


def test_unknown_split_and_other_task_and_missing_parts(tmp_path):
    dataset = write(tmp_path / "set", [RETRIEVAL])
    with pytest.raises(UserError, match='no split "tset"; there are: train'):
        dataset.records("tset")
    with pytest.raises(UserError, match="vqa"):
        Dataset.open(tmp_path / "set", "vqa")
    with pytest.raises(UserError, match="no such folder"):
        Dataset.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"dataset.json is missing"):
        Dataset.open(tmp_path)
    (tmp_path / "media").rmdir()
    with pytest.raises(UserError, match="media_root"):
        Dataset.open(tmp_path / "set")
    for path in ("../secret.jpg", "/etc/passwd"):
        with pytest.raises(UserError, match=path):
            dataset.path(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "format"),
        ({"task": "captioning"}, "unknown task"),
        ({"splits": {}}, "splits"),
        ({"splits": {"train": {}}}, "splits.train.file"),
        ({"splits": {"train": {"file": "../other.jsonl"}}}, "splits.train.file"),
        ({"name": None}, "name"),
    ],
)
def test_wrong_manifest_is_named(tmp_path, fields, message):
    write(tmp_path / "set", [RETRIEVAL])
    edit_manifest(tmp_path / "set", **fields)
    with pytest.raises(UserError, match=message) as error:
        Dataset.open(tmp_path / "set")
    assert "dataset.json" in str(error.value)


def test_crash_while_writing_keeps_the_old_dataset(tmp_path, monkeypatch):
    old = write(tmp_path / "set", [RETRIEVAL])
    dumps, calls = json.dumps, []

    def crash_at_third(value, **options):
        calls.append(value)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return dumps(value, **options)

    monkeypatch.setattr(manifest.json, "dumps", crash_at_third)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", [{**RETRIEVAL, "id": f"new/{i}"} for i in range(5)])
    monkeypatch.undo()
    assert Dataset.open(tmp_path / "set") == old
    assert old.records("train") == [RETRIEVAL]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["dataset.json", "train.jsonl"]


def test_manifest_gets_its_name_last(tmp_path, monkeypatch):
    """Killed between two renames, the folder must not look complete."""
    write(tmp_path / "set", [RETRIEVAL])
    replace, renamed = os.replace, []

    def crash_after_first(source, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("vlkit.files.os.replace", crash_after_first)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", [], splits={"train": [RETRIEVAL], "val": [RETRIEVAL]})
    assert renamed == ["val.jsonl"]
    assert not (tmp_path / "set/dataset.json").exists()


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"train.jsonl but no dataset.json"):
        write(tmp_path, [RETRIEVAL])
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_wrong_output_and_empty_split_are_user_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --output"):
        write(tmp_path / "file", [RETRIEVAL])
    with pytest.raises(UserError, match='"train" has no records'):
        write(tmp_path / "set", [])
    with pytest.raises(UserError, match="record coco/1: field"):
        write(tmp_path / "set", [{**RETRIEVAL, "texts": []}])
    assert not (tmp_path / "set").exists()


def test_hundred_thousand_records_load_in_seconds(tmp_path):
    records = [
        {**RETRIEVAL, "id": f"coco/{i}", "texts": [f"caption {i} {j}" for j in range(5)]} for i in range(113_287)
    ]
    dataset = write(tmp_path / "set", records)
    start = time.perf_counter()
    assert len(dataset.records("train")) == 113_287
    assert time.perf_counter() - start < 15  # about one second on an idle core


def test_records_that_were_read_ahead_are_not_read_twice(tmp_path, monkeypatch):
    dataset = write(tmp_path / "set", [RETRIEVAL])
    reads = []
    scan = Dataset.scan
    monkeypatch.setattr(Dataset, "scan", lambda self, split: reads.append(split) or scan(self, split))
    dataset.read_ahead("train")
    assert dataset.records("train") == [RETRIEVAL] and reads == ["train"]
    assert dataset.records("train") == [RETRIEVAL] and reads == ["train", "train"]  # nothing is held after the first
    (tmp_path / "set/train.jsonl").write_text("{}\n")
    with pytest.raises(UserError):
        dataset.read_ahead("train")
