"""The run folder: a log without doubles, strict JSON, curves and a card."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from vlkit.engine.report import Report, finite, versions
from vlkit.engine.run_folder import RunFolder, changed_keys


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path)
    for step in range(1, 7):
        folder.log(step=step, loss=1 / step, lr=0.1)
        if step % 2 == 0:
            folder.log(step=step, split="val", rsum=float(step))
    return folder


def report(**changes) -> Report:
    values = {
        "task": "retrieval",
        "base": {"name": "tiny"},
        "adapter": {"kind": "sherl", "reduction": 4},
        "split": "test",
        "before": {"rsum": 100.0, "mr": math.nan},
        "after": {"rsum": 123.456, "mr": 2.0},
        "trainable_parameters": 1000,
        "total_parameters": 50000,
        "saved_activation_bytes": 3 << 20,
        "peak_memory_bytes": 5 << 20,
        "train_seconds": 12.5,
        "examples_per_second": 80.0,
        "seed": 7,
    }
    return Report(**{**values, **changes})


def test_log_is_rewound_to_the_checkpoint(folder):
    folder.rewind_log(step=4, evaluated=2)
    lines = folder.read_log()
    assert [line["step"] for line in lines if "split" not in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "split" in line] == [2]


def test_line_cut_off_by_a_kill_is_dropped(folder):
    with open(folder.path / "log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    assert folder.read_log()[-1]["step"] == 6
    folder.rewind_log(step=6, evaluated=6)
    folder.log(step=7, loss=0.5)
    lines = (folder.path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"step": 7, "loss": 0.5} and len(lines) == 10


def test_log_is_strict_json(folder):
    folder.log(step=8, loss=math.inf)
    assert json.loads((folder.path / "log.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail) == {
        "step": 8,
        "loss": None,
    }


def test_finite():
    assert finite({"a": [math.nan, 1.5, (2, -math.inf)], 3: Path("x"), "b": True}) == {
        "a": [None, 1.5, [2, None]],
        "3": "x",
        "b": True,
    }


def test_curves_are_a_image(folder):
    folder.draw_curves("rsum")
    with Image.open(folder.path / "curves.png") as image:
        assert image.size[0] > image.size[1] > 100
        assert len(image.convert("L").getcolors(256)) > 10


def test_curves_of_an_empty_log(tmp_path):
    RunFolder(tmp_path).draw_curves("rsum")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_metrics_and_card(folder):
    folder.write_report(report(more={"best_step": 40}), {"name": "demo", "train": 512})
    metrics = json.loads((folder.path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["before"] == {"rsum": 100.0, "mr": None} and metrics["after"]["rsum"] == 123.456
    assert metrics["best_step"] == 40 and "more" not in metrics
    assert {"task", "base", "adapter", "split", "trainable_parameters", "total_parameters", "seed"} <= metrics.keys()
    assert {"saved_activation_bytes", "peak_memory_bytes", "train_seconds", "examples_per_second"} <= metrics.keys()
    assert metrics["versions"] == versions() and {"vlkit", "torch", "open_clip", "python"} <= versions().keys()
    card = (folder.path / "README.md").read_text()
    assert "| rsum | 100.00 | 123.46 |" in card and "| mr | - | 2.00 |" in card
    for part in (
        "# retrieval: sherl adapter",
        "1,000 of 50,000 parameters (2.00 %)",
        "3.0 MiB",
        "name demo",
        "python ",
    ):
        assert part in card


def test_only_process_0_writes(tmp_path):
    other = RunFolder(tmp_path, writes=False)
    other.log(step=1)
    other.rewind_log(0, 0)
    other.draw_curves("rsum")
    other.write_report(report(), {})
    assert not list(tmp_path.iterdir())


def test_changed_keys():
    old = "lr: 0.1\noutput: a\ndata: {root: x, split: t}\nworkers: 1\ngone: 1\n"
    new = "lr: 0.2\noutput: b\ndata: {root: y, split: t}\nworkers: 4\n"
    assert changed_keys(old, new) == ["lr was 0.1, now 0.2", "data.root was x, now y", "gone was 1, now absent"]
    assert changed_keys(old, old) == []
