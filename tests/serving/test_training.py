"""Training for visitors: their images, one run at a time, stopping, and runs that fail; the script is a stand-in."""

from __future__ import annotations

import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import vlkit
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError
from vlkit.serving import training
from vlkit.serving.own_classes import CLASSES, class_folder
from vlkit.serving.own_images import CAPTIONS, OwnImages, caption_of, prepare_own_images
from vlkit.serving.training import Job, Trainer, Wish
from vlkit.serving.uploaded import Upload

WISH = Wish("tiny", "sherl", 3, 2, "mine")
SCRIPT = """
import json, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
for step in range(1, int(sys.argv[2]) + 1):
    with open(sys.argv[1] + "/log.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "epoch": step / 2, "loss": 1 / step, "memory_bytes": 100}) + "\\n")
    time.sleep(0.02)
    if asked:
        break
open(sys.argv[1] + "/kept", "w").write(str(step))
"""


def images(folder: Path, names: list[str]) -> list[Upload]:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / name)
    return [Upload(folder / name, name) for name in names]


def table(folder: Path, lines: str, name: str = "captions.csv") -> Upload:
    (folder / name).write_text(lines)
    return Upload(folder / name, name)


# --- own images ------------------------------------------------------------------------------------------------------


def test_captions_from_a_table_from_texts_or_from_names(tmp_path: Path):
    four = images(tmp_path / "in", ["a.png", "b.png", "c.png", "d.png"])
    lines = "file_name,caption\na.png,one cat\nb.png,two cats\nc.png,three cats\nd.png,four cats\n"
    own = prepare_own_images([*four, table(tmp_path / "in", lines, "list.csv")], tmp_path / "table", CAPTIONS)
    assert (own.training, own.validation) == (4, "train") and "none is held out" in own.notes[-1]
    texts = [table(tmp_path / "in", f"the {n}\n", f"{n}.txt") for n in "abcd"]
    own = prepare_own_images([*four, *texts], tmp_path / "texts", CAPTIONS)
    assert {r["texts"][0] for r in Dataset.open(own.root, "retrieval").records("train")} == {f"the {n}" for n in "abcd"}
    named = images(tmp_path / "names", [f"a_red-car no {n} ({n}).png" for n in range(25)])
    own = prepare_own_images(named, tmp_path / "from_names", CAPTIONS)
    dataset = Dataset.open(own.root, "retrieval")
    assert own.validation == "val" and (own.training, len(dataset.records("val"))) == (20, 5)
    assert dataset.records("train")[0]["texts"] == ["a red car no"]


@pytest.mark.parametrize(
    ("name", "caption"), [("IMG_1234.jpg", None), ("cat.png", None), ("x/two_cats.png", "two cats")]
)
def test_a_camera_gives_no_captions(name: str, caption: str | None):
    assert caption_of(name) == caption


def test_unusable_images_are_refused_by_name(tmp_path: Path):
    *named, camera = images(tmp_path / "in", ["a a.png", "b b.png", "c c.png", "d d.png", "IMG_1.png"])
    with pytest.raises(UserError, match=r"IMG_1.png: there are no captions, and the file name is none"):
        prepare_own_images([*named, camera], tmp_path / "camera", CAPTIONS)
    with pytest.raises(UserError, match="3 images with captions; upload 4 to 500"):
        prepare_own_images(named[:3], tmp_path / "few", CAPTIONS)
    (tmp_path / "in" / "d d.png").write_text("no image")
    with pytest.raises(UserError, match=r"d d.png: cannot be used as an image"):
        prepare_own_images(named, tmp_path / "damaged", CAPTIONS)


def labels_of(own: OwnImages, split: str = "train") -> dict[str, str]:
    """Image -> class."""
    records = Dataset.open(own.root, "classification").records(split)
    return {record["image"]: record["label"] for record in records}


def test_classes_from_a_table_from_folders_or_as_typed(tmp_path: Path):
    four = images(tmp_path / "in", ["a.png", "b.png", "c.png", "d.png"])
    labels = {"a.png": "cat", "b.png": "cat", "c.png": "cat", "d.png": "red/blue dog"}
    lines = "image,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items())
    outside = "../../../in/a.png,cat\n"  # there, but not uploaded
    own = prepare_own_images([*four, table(tmp_path / "in", lines + outside)], tmp_path / "table", CLASSES)
    assert labels_of(own) == labels and (own.training, own.validation) == (4, "train")
    assert "classes with a single training image: red/blue dog" in own.notes
    assert "images of the table that were not uploaded (1): ../../../in/a.png" in own.notes
    typed = [Upload(each.path, each.name, class_folder(f" {labels[each.name][:3]} ")) for each in four]
    own = prepare_own_images(typed, tmp_path / "typed", CLASSES)
    assert labels_of(own) == {"cat/a.png": "cat", "cat/b.png": "cat", "cat/c.png": "cat", "red/d.png": "red"}
    assert Dataset.open(own.root, "classification").extra["classes"] == ["cat", "red"]
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(12):
            file.write(four[0].path, f"mine/cat/{number}.png")
            file.write(four[1].path, f"mine/dog/old/{number}.png")
    own = prepare_own_images([Upload(archive, archive.name)], tmp_path / "zip", CLASSES)
    assert (own.training, own.validation) == (20, "val") and Counter(labels_of(own, "val").values()) == dict(
        cat=2, dog=2
    )


def test_the_one_folder_around_an_archive_is_no_class_beside_typed_ones(tmp_path: Path):
    two = images(tmp_path / "in", ["a.png", "b.png"])
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(2):
            file.write(two[0].path, f"data/mine/cat/{number}.png")
            file.write(two[1].path, f"data/mine/dog/{number}.png")
        file.writestr("__MACOSX/data/._mine", "")
    typed = [Upload(each.path, each.name, "fish") for each in two]
    own = prepare_own_images([Upload(archive, archive.name), *typed], tmp_path / "both", CLASSES)
    assert Counter(labels_of(own).values()) == {"cat": 2, "dog": 2, "fish": 2}


def test_images_whose_classes_cannot_be_learned_are_refused(tmp_path: Path):
    four = images(tmp_path / "in", ["a.png", "b.png", "c.png", "d.png"])
    lines = "image,label\na.png,cat\nb.png,cat\nc.png,dog\n"
    wrong = {
        r"d.png: no class is given; add a row for each image to captions.csv": [*four, table(tmp_path / "in", lines)],
        r"a.png, b.png, c.png and 1 more: no class is given; choose files of one class": four,
        r"There is one class: cat; give images of at least two classes": [Upload(f.path, f.name, "cat") for f in four],
        r"^second.csv:2: 1 columns": [*four, table(tmp_path / "in", "image,label\na.png\n", "second.csv")],
        r"There are 501 images with classes; upload 4 to 500": [Upload(four[0].path, f"{n}.png") for n in range(501)],
    }
    for number, (message, uploads) in enumerate(wrong.items()):
        with pytest.raises(UserError, match=message):
            prepare_own_images(uploads, tmp_path / f"{number}", CLASSES)
    for name in ("", "a/b", "..", "x" * 61):
        with pytest.raises(UserError):
            class_folder(name)


# --- the queue -------------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(tmp_path: Path) -> list[Upload]:
    return images(tmp_path / "in", [f"a cat {n}.png".replace("0", "o") for n in "abcd"])


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch) -> Trainer:
    """Its script takes 3 epochs of 2 steps, or many where the test sets ``steps``."""
    steps = {"count": 6}

    def command(job: Job, data: object, device: str) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(job.folder), str(steps["count"])]

    monkeypatch.setattr(training, "command", command)
    found = Trainer(tmp_path / "trained", lambda folder, progress: folder.name)
    found.steps = steps  # type: ignore[attr-defined]
    return found


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_ends_with_an_opened_adapter(trainer: Trainer, uploads: list[Upload]):
    job = trainer.start(uploads, WISH)
    wait(lambda: not job.running)
    assert (job.phase, job.result, job.error) == ("ready", "mine", "") and job.steps == 6 == len(job.lines())
    with pytest.raises(UserError, match="a run of this name exists"):
        trainer.start(uploads, WISH)


def test_a_second_visitor_is_told_and_a_stopped_run_keeps_what_it_trained(trainer: Trainer, uploads: list[Upload]):
    trainer.steps["count"] = 10**6  # type: ignore[attr-defined]
    job = trainer.start(uploads, Wish("tiny", "sherl", 10**6, 2, "mine"))
    wait(lambda: len(job.lines()) > 2)
    with pytest.raises(UserError, match="Someone else is training"):
        trainer.start(uploads, Wish("tiny", "sherl", 1, 2, "other"))
    trainer.stop()
    trainer.stop()
    wait(lambda: not job.running)
    assert job.phase == "ready" and job.stopped and int((job.folder / "kept").read_text()) == len(job.lines()) < 10**6


def test_the_end_of_the_server_stops_the_run_and_waits_for_it(trainer: Trainer, uploads: list[Upload]):
    trainer.steps["count"] = 10**6  # type: ignore[attr-defined]
    job = trainer.start(uploads, Wish("tiny", "sherl", 10**6, 2, "mine"))
    wait(lambda: job.lines())
    trainer.close()
    assert job.process is not None and job.process.poll() == 0 and (job.folder / "kept").exists()


def test_failures_are_one_sentence_and_free_the_queue(trainer: Trainer, uploads: list[Upload], monkeypatch):
    endings = {
        "import sys; print('error: --lr 9: too high', file=sys.stderr); sys.exit(2)": "--lr 9: too high",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "killed, probably because the memory was full",
        "raise ValueError": "The run ended with code 1",
    }
    for number, (script, message) in enumerate(endings.items()):
        monkeypatch.setattr(training, "command", lambda *_, script=script: [sys.executable, "-c", script])
        job = trainer.start(uploads, Wish("tiny", "sherl", 1, 2, f"run{number}"))
        wait(lambda job=job: not job.running)
        assert job.phase == "failed" and message in job.error
    job = trainer.start(uploads[:3], Wish("tiny", "sherl", 1, 2, "few"))
    wait(lambda: not job.running)
    assert "3 images with captions" in job.error and not job.folder.exists()
    with pytest.raises(UserError, match="no images yet"):
        trainer.start([], WISH)
    assert threading.active_count() < 50


def test_the_command_is_that_of_the_task(tmp_path: Path, uploads: list[Upload]):
    own = prepare_own_images(uploads, tmp_path / "data", CAPTIONS)
    for task in training.ANNOTATIONS:
        job = Job(Wish("tiny", "lora", 9, 32, "a", task), tmp_path / "a", data=own)
        words = training.command(job, own, "cpu")
        assert words[1].endswith(f"{task}/train.py") and job.batch_size == 4 and job.steps == 9
        given = dict(zip(words[2::2], words[3::2], strict=True))
        assert given["--adapter.kind"] == "lora" and given["--on_stop"] == "finish" and given["--batch_size"] == "4"


@pytest.mark.slow
def test_the_task_of_classes_trains_a_classifier(tmp_path: Path):
    """The real script: classes whose names tell the base nothing are told apart after a few steps."""
    named = images(tmp_path / "in", [f"{n}.png" for n in range(8)])
    for number, each in enumerate(named):
        Image.new("RGB", (48, 48), (250, 40 + number, 0) if number < 4 else (0, 40 + number, 250)).save(each.path)
    uploads = [Upload(each.path, each.name, "mine" if number < 4 else "yours") for number, each in enumerate(named)]
    trainer = Trainer(tmp_path / "trained", lambda folder, progress: vlkit.load(str(folder)), device="cpu")
    job = trainer.start(uploads, Wish("tiny", "sherl", 10, 8, "mine", "classification"))
    wait(lambda: not job.running)
    assert job.phase == "ready", job.error
    losses = [line["loss"] for line in job.lines() if "loss" in line]
    assert len(losses) == job.steps == 10 and losses[-1] < 0.5 * losses[0]
    assert job.metrics()["task"] == "classification" and job.metrics()["after"]["top1"] == 100
    assert [job.result.classify(each.path, k=1)[0][0] for each in named] == ["mine"] * 4 + ["yours"] * 4
