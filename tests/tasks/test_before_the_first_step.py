"""What must be said before the first step, in every task: missing splits, batches without negatives, other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import load_script, refuse
from vlkit.cli.config import parse
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.tasks.registry import TASKS
from vlkit.tasks.splits import data_identity

ANSWERS = ["yes"] * 9 + ["no"]
RECORDS: dict[str, dict[str, Any]] = {
    "retrieval": {"image": "{}.png", "texts": ["a red house", "a house"]},
    "video_retrieval": {"video": "{}.mp4", "texts": ["a dog runs", "a dog"]},
    "vqa": {"image": "{}.png", "question": "is it red?", "answers": ANSWERS},
    "grounding": {"image": "{}.png", "text": "the red one", "box": [1, 1, 9, 9], "width": 20, "height": 20},
    "classification": {"image": "{}.png", "label": "house"},
}
EXTRA = {"classification": {"classes": ["house", "tree"]}}
"""Further fields of ``dataset.json``."""
each_task = pytest.mark.parametrize("task", TASKS)


def prepared(root: Path, task: str, *splits: str, count: int = 4) -> Path:
    """A dataset whose media are not there: nothing here may look at them."""
    root.mkdir(exist_ok=True)
    records = {split: [record(task, f"{split}{i}") for i in range(count)] for split in splits}
    where: dict[str, Any] = {"media_root": root, "source": "made for a test", "extra": EXTRA.get(task)}
    write_dataset(root, name="made", task=task, splits=records, **where)
    return root


def record(task: str, name: str) -> dict[str, Any]:
    media = TASKS[task].records.media
    number = {"question_id": name} if task == "vqa" else {}
    return {"id": name, **number, **RECORDS[task], media: RECORDS[task][media].format(name)}


@each_task
def test_a_missing_split_is_named(task: str, tmp_path: Path) -> None:
    root, script = prepared(tmp_path / "data", task, "train", "val"), f"tasks/{task}/train.py"
    for flag in ("--data.validation", "--data.test"):
        line = refuse(script, "--data.root", root, "--output", tmp_path / "run", flag, "tset")
        assert 'no split "tset"; there are: train, val' in line
    # Nothing was trained, so the folder is free for the right names; of this one the test split is missing too.
    alone = prepared(tmp_path / "alone", task, "train")
    line = refuse(script, "--data.root", alone, "--output", tmp_path / "run", "--epochs", 9)
    assert 'no split "val"; there are: train' in line
    assert not (tmp_path / "run" / "log.jsonl").exists()


@each_task
def test_a_wrong_record_of_the_validation_split_is_named(task: str, tmp_path: Path) -> None:
    root = prepared(tmp_path / "data", task, "train", "val")
    (root / "val.jsonl").write_text('{"id": "x"}\n')
    line = refuse(f"tasks/{task}/train.py", "--data.root", root, "--output", tmp_path / "run")
    assert "val.jsonl:1: field" in line


def test_validation_questions_without_answers_are_named(tmp_path: Path) -> None:
    root = prepared(tmp_path / "data", "vqa", "train", "val")
    text = (root / "val.jsonl").read_text()
    (root / "val.jsonl").write_text(text.replace('"answers"', '"hidden"'))
    words = ("--data.root", root, "--output", tmp_path / "run", "--head.kind", "generate")
    assert "question val0 has no answers" in refuse("tasks/vqa/train.py", *words)


@pytest.mark.parametrize("task", ["retrieval", "video_retrieval"])
@pytest.mark.parametrize(
    ("words", "count", "says"),
    [
        (("--batch_size", 1), 4, "--batch_size 1: a contrastive batch of 1 has no negatives"),
        (("--batch_size", 1, "--accumulate", 3), 4, "--accumulate adds none"),
        ((), 1, "has no negatives: the training split has 1 image or video"),
        (("--data.every_caption", "true"), 1, "has no negatives: the training split has 1 image or video"),
    ],
)
def test_a_loss_without_negatives_is_refused(
    task: str, words: tuple[object, ...], count: int, says: str, tmp_path: Path
) -> None:
    root = prepared(tmp_path / "data", task, "train", "val", count=count)
    kinds = ("infonce", "triplet") if task == "retrieval" else ("infonce", "clip4clip")
    for kind in kinds:
        given = ("--data.root", root, "--output", tmp_path / "run", "--loss.kind", kind, *words)
        assert says in refuse(f"tasks/{task}/train.py", *given)


def test_pretraining_needs_negatives_too(tmp_path: Path) -> None:
    words = ("--output", tmp_path, "--batch_size", 1)
    assert "has no negatives" in refuse("tasks/pretrain/train.py", *words)
    parse(load_script("tasks/pretrain/train.py").Config, ["--model", "t5", "--batch_size", "1"])


@pytest.mark.parametrize("change", ["id", "text", "media", "order"])
@each_task
def test_other_data_of_the_same_number_are_other_data(task: str, change: str, tmp_path: Path) -> None:
    root = prepared(tmp_path / "data", task, "train", "val")
    before = data_identity(Dataset.open(root), "train", "val", "test")
    assert before == data_identity(Dataset.open(root), "train", "val", "test") and len(before) == 3
    path = root / "val.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    swaps = {
        "id": ('"id": "val1"', '"id": "val9"'),
        "text": {"video_retrieval": ("dog", "cat"), "classification": ("house", "tree")}.get(task, ("red", "blue")),
        "media": ("val1.", "val7."),
    }
    text = "".join(lines[::-1]) if change == "order" else "".join(lines).replace(*swaps[change])
    path.write_text(text)
    after = data_identity(Dataset.open(root), "train", "val")
    assert {key for key in before if before[key] != after[key]} == {"records of val"}


@each_task
def test_every_script_tells_fit_what_it_trains_on(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on compares this with its checkpoint (tests/engine)."""
    script = load_script(f"tasks/{task}/train.py")
    root, seen = prepared(tmp_path / "data", task, "train", "val"), {}

    class Reached(Exception):
        """The script has come to fit."""

    def fit(*given: Any, identity: dict[str, Any], **more: Any) -> None:
        seen.update(identity)
        raise Reached

    monkeypatch.setattr(script, "fit", fit)
    for name in (
        "evaluate_split",
        "evaluate_records",
        "text_video_metrics",
    ):  # without the adapter: there are no media to measure on
        if hasattr(script, name):
            monkeypatch.setattr(script, name, lambda *given: {})
    if task == "video_retrieval":
        monkeypatch.setattr(script.Clips, "embed", lambda *given: ())
    words = ("--data.root", root, "--output", tmp_path / "run", "--device", "cpu", "--data.min_questions", 1)
    with pytest.raises(Reached):
        script.main(parse(script.Config, [str(word) for word in (words if task == "vqa" else words[:-2])]))
    assert {"base", "dataset", "records of train", "records of val"} <= seen.keys()
    assert ("answers" in seen) == (task == "vqa")
