"""Trackers: names, real event files of TensorBoard, and what happens when one fails."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from vlkit.engine import trackers
from vlkit.engine.trackers import Guarded, final, named, open_trackers, tracker_names
from vlkit.errors import UserError

LINE = {"step": 3, "epoch": 0.5, "loss": 2.0, "flag": True, "note": "x"}
EVALUATION = {"step": 6, "epoch": 1.0, "split": "val", "acc@0.5": 40.0}
REPORT = {"task": "grounding", "before": {"acc@0.5": 3.0}, "after": {"acc@0.5": 41.0}, "train_seconds": 7.5}


def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("lr: 0.001\nadapter:\n  kind: sherl\n")
    return tmp_path


def test_numbers_are_grouped_by_split() -> None:
    assert named(LINE) == {"train/epoch": 0.5, "train/loss": 2.0}
    assert named(EVALUATION) == {"val/epoch": 1.0, "val/acc@0.5": 40.0}
    assert final(REPORT) == {"run/train_seconds": 7.5, "before/acc@0.5": 3.0, "after/acc@0.5": 41.0}


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(" tensorboard ", "grounding", folder(tmp_path))
    tracker.log(LINE)
    tracker.log(EVALUATION)
    tracker.finish(REPORT)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["train/loss"] == [(3, 2.0)] and found["val/acc@0.5"] == [(6, 40.0)]
    assert found["after/acc@0.5"] == [(0, 41.0)]


def test_unknown_names_and_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--log_to chalk: no such tracker; choose from tensorboard, wandb"):
        tracker_names("tensorboard,chalk")
    assert tracker_names("") == []

    def missing(*_: object) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", missing)
    with pytest.raises(UserError, match=r"--log_to wandb: needs a package that is not installed .* pip install wandb"):
        open_trackers("wandb", "vqa", folder(tmp_path))


def test_a_tracker_that_fails_does_not_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    class Broken:
        def log(self, values: object) -> None:
            calls.append(values)
            raise ConnectionError("the line is cut")

        finish = log

    guarded = Guarded("wandb", Broken())
    with caplog.at_level(logging.WARNING):
        guarded.log(LINE)
        guarded.log(LINE)
        guarded.finish(REPORT)
    assert len(calls) == 1 and "--log_to wandb: stopped (the line is cut); training goes on" in caplog.text
