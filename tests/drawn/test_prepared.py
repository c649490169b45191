"""The demo dataset of each task: made on first use, whole or not at all, then reused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkit.data.check import check_dataset
from vlkit.data.manifest import Dataset
from vlkit.drawn import kind_images, make, prepared
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.prepared import demo_dataset
from vlkit.drawn.world import COUNTS
from vlkit.errors import UserError

ROOT = Path(__file__).parents[2]
COUNT = {"train": 10, "val": 4, "test": 8}
TASKS = ("retrieval", "vqa", "grounding")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(COUNTS, "small", COUNT)
    monkeypatch.setattr(kind_images, "PER_CLASS", {"train": 2, "val": 1, "test": 1})
    return tmp_path / "cache"


def test_each_task_has_a_clean_dataset_over_the_same_images(cache: Path) -> None:
    media = set()
    for task in TASKS:
        dataset = Dataset.open(demo_dataset(task, "small"), task)
        assert dataset.name == "demo" and dataset.root.is_relative_to(cache)
        report = check_dataset(dataset, workers=1)
        assert report.problems == [] and report.records >= 22
        assert {"train", "val"} < set(dataset.splits)
        media.add(dataset.media_root.resolve())
    assert len(media) == 1
    assert len(Dataset.open(demo_dataset("retrieval", "small")).records("train")[0]["texts"]) == 5
    assert len(Dataset.open(demo_dataset("vqa", "small")).records("test")[0]["answers"]) == 10


def test_videos_have_a_clean_dataset_too(cache: Path) -> None:
    dataset = Dataset.open(demo_dataset("video_retrieval", "small"), "video_retrieval")
    assert {"train", "test"} <= set(dataset.splits) and check_dataset(dataset, workers=1).problems == []


def test_dark_kinds_are_the_same_images_at_half_the_exposure(cache: Path) -> None:
    dark = Dataset.open(demo_dataset("dark", "small"), "classification")
    kinds = Dataset.open(demo_dataset("classification", "small"), "classification")
    assert check_dataset(dark, workers=1).problems == [] and dark.name != kinds.name
    for ours, theirs in zip(dark.records("train")[:5], kinds.records("train")[:5], strict=True):
        assert ours["label"] == theirs["label"]
        pixels = [np.asarray(Image.open(d.path(r)), float) for d, r in ((dark, ours), (kinds, theirs))]
        assert np.abs(pixels[0] - kind_images.DARK * pixels[1]).mean() < 2  # both went through JPEG


def test_kinds_have_a_clean_dataset_in_a_folder_of_their_own(cache: Path) -> None:
    dataset = Dataset.open(demo_dataset("classification", "small"), "classification")
    assert check_dataset(dataset, workers=1).problems == [] and dataset.extra["classes"] == list(KINDS)
    assert [record["label"] for record in dataset.records("train")] == [kind for kind in KINDS for _ in range(2)]


def test_retrieval_does_not_wait_for_the_parts_of_other_tasks(cache: Path) -> None:
    dataset = Dataset.open(demo_dataset("retrieval", "small"))
    assert not any((dataset.media_root / part).exists() for part in make.PARTS)
    demo_dataset("vqa", "small")
    assert (dataset.media_root / "vqa").is_dir() and not (dataset.media_root / "refcoco").exists()


def test_it_is_made_once_and_then_reused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo_dataset("retrieval", "small")
    monkeypatch.setattr(prepared, "make_world", None)
    monkeypatch.setattr(prepared, "prepare", None)
    assert demo_dataset("retrieval", "small") == first


def test_another_seed_size_or_version_is_another_dataset(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo_dataset("retrieval", "small")
    other = demo_dataset("retrieval", "small", seed=1)
    monkeypatch.setitem(COUNTS, "medium", COUNT)
    larger = demo_dataset("retrieval", "medium")
    monkeypatch.setattr(prepared, "VERSION", 99)
    newer = demo_dataset("retrieval", "small")
    assert len({first, other, larger, newer}) == 4
    texts = [Dataset.open(root).records("train")[0]["texts"] for root in (first, other)]
    assert texts[0] != texts[1]


def test_plain_drawings_are_a_world_of_their_own(cache: Path) -> None:
    drawn, plain = (Dataset.open(demo_dataset("vqa", "small", style=style), "vqa") for style in ("drawn", "plain"))
    assert plain.media_root.resolve() != drawn.media_root.resolve()
    assert check_dataset(plain, workers=1).problems == []
    assert [r["question"] for r in plain.records("test")] != [r["question"] for r in drawn.records("test")]
    with pytest.raises(UserError, match="style plain"):
        make.make_world(plain.media_root.resolve(), size="small")


def test_making_it_shows_progress_on_stderr_and_nothing_on_stdout(
    cache: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # bars are shown on terminals alone, and this makes stderr one
    with caplog.at_level(logging.INFO, logger="vlkit"):
        demo_dataset("vqa", "small")
    shown = capsys.readouterr()
    assert "draw images" in shown.err and "ask about train" in shown.err and shown.out == ""
    assert "making the drawn demo dataset for vqa" in caplog.text


def test_a_failed_run_leaves_nothing_that_looks_complete(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop"):
        patch.setattr(prepared, "prepare", lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        demo_dataset("grounding", "small")
    assert not list(cache.rglob("dataset.json"))
    assert check_dataset(Dataset.open(demo_dataset("grounding", "small")), workers=1).problems == []


def test_a_dataset_whose_images_were_cleared_is_made_again(cache: Path) -> None:
    root = demo_dataset("retrieval", "small")
    before = (root / "train.jsonl").read_text()
    shutil.rmtree(Dataset.open(root).media_root)
    assert demo_dataset("retrieval", "small") == root
    assert check_dataset(Dataset.open(root), workers=1).problems == [] and (root / "train.jsonl").read_text() == before


@pytest.mark.slow
def test_what_a_killed_process_left_does_not_disturb(cache: Path) -> None:
    """The process dies while it writes a part of the world, and again while it prepares."""
    code = (
        "import os, sys\n"
        "from vlkit.drawn import make, prepared, world\n"
        "world.COUNTS['small'] = {'train': 10, 'val': 4, 'test': 8}\n"
        "stop = lambda *a, **k: os._exit(9)\n"
        "if sys.argv[1] == 'part':\n"
        "    prepared.demo_dataset('retrieval', 'small')\n"
        "    make.PARTS['vqa'] = stop\n"
        "else:\n"
        "    prepared.prepare = stop\n"
        "prepared.demo_dataset('vqa', 'small')\n"
    )
    for moment in ("part", "prepare"):
        done = subprocess.run([sys.executable, "-c", code, moment], cwd=ROOT, env=_environment(), check=False)
        assert done.returncode == 9
        assert not list(cache.rglob("vqa/dataset.json"))
    assert check_dataset(Dataset.open(demo_dataset("vqa", "small")), workers=1).problems == []


@pytest.mark.slow
def test_two_processes_at_once_make_it_together(cache: Path) -> None:
    code = (
        "from vlkit.drawn import prepared, world\n"
        "world.COUNTS['small'] = {'train': 10, 'val': 4, 'test': 8}\n"
        "print(prepared.demo_dataset('grounding', 'small'))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    (root,) = answers
    assert check_dataset(Dataset.open(root), workers=1).problems == []
    assert not list(cache.rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file in the way")
    with pytest.raises(UserError, match="set VLKIT_CACHE"):
        demo_dataset("retrieval", "small")


def test_negative_seed_is_refused(cache: Path) -> None:
    with pytest.raises(UserError, match="seed -1"):
        demo_dataset("retrieval", "small", seed=-1)


@pytest.mark.slow
def test_demo_script_writes_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTS, "small", {"train": 3, "val": 1, "test": 2})
    make.make_world(tmp_path / "w", size="small")
    assert all((tmp_path / "w" / part).is_dir() for part in make.PARTS) and {"vqa", "refcoco"} <= set(make.PARTS)
    assert json.loads((tmp_path / "w" / "world.json").read_text())["seed"] == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
