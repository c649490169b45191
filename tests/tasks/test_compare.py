"""The comparison script: cells, resume, failures, table and plot, on made-up and on real runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.scripts import call, load_script
from vlkit.cli.config import parse
from vlkit.errors import UserError
from vlkit.tasks.registry import TASKS

COMPARE = "tasks/compare.py"


def finished(folder: Path, kept: int, rsum: float, **more: object) -> None:
    """A run folder as training leaves it, as far as the comparison looks."""
    folder.mkdir(parents=True)
    after = {"rsum": rsum, "i2t_r1": rsum / 6, "t2i_r1": rsum / 7}
    before = {"rsum": 50.0, "i2t_r1": 5.0, "t2i_r1": 6.0}
    costs = {"saved_activation_bytes": kept, "peak_memory_bytes": 2 * kept, "trainable_parameters": 1234}
    metrics = {"before": before, "after": after, **costs, "train_seconds": 9.0, **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_finished_runs_are_read_and_not_trained_again(tmp_path, capsys):
    for seed, rsum in ((0, 100.0), (1, 104.0)):
        finished(tmp_path / f"linear-seed{seed}", 2**20, rsum, step_time_over_forward=1.25)
        finished(tmp_path / f"lora-rank-4-seed{seed}", 2**30, rsum + 50)
    call(COMPARE, "--kinds", "linear,lora:rank=4", "--seeds", 2, "--output", tmp_path)
    table = capsys.readouterr().out
    assert "| before | 50.0 | 5.0 | 6.0 |" in table
    assert "| linear | 102.0 ± 2.8 | 17.0 ± 0.5 | 14.6 ± 0.4 | 1 | 2 | 1.25 | 1,234 |" in table
    assert "| lora:rank=4 | 152.0 ± 2.8 |" in table and "| 1,024 | 2,048 |  | 1,234 |" in table
    assert (tmp_path / "results.md").read_text() == table.removesuffix("\n")
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["method"], row["seed"], row["rsum"]) for row in rows[:2]] == [
        ("linear", "0", "100.0"),
        ("lora:rank=4", "0", "150.0"),
    ]
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_method_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys):
    finished(tmp_path / "linear-seed0", 2**20, 100.0)
    with pytest.raises(UserError, match=r"1 of 2 runs failed: lora:rank=0 seed 0: exit code 2 \(.*rank 0: must be"):
        call(COMPARE, "--kinds", "linear,lora:rank=0", "--seeds", 1, "--output", tmp_path)
    assert "| linear | 100.0" in capsys.readouterr().out
    assert (tmp_path / "lora-rank-0-seed0.log").exists()


def tried(folder: Path, validation: float, rsum: float) -> None:
    finished(folder, 2**20, rsum)
    lines = [{"step": 1, "loss": 2.0}, {"split": "val", "rsum": validation - 9}, {"split": "val", "rsum": validation}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_learning_rate_that_is_best_on_validation_trains_every_seed(tmp_path, capsys):
    """The test scores point the other way: they must not choose."""
    tried(tmp_path / "linear-lr1e-3-seed0", 110.0, 90.0)
    tried(tmp_path / "linear-lr3e-3-seed0", 105.0, 120.0)
    finished(tmp_path / "linear-lr1e-3-seed1", 2**20, 94.0)
    finished(tmp_path / "lora-seed0", 2**20, 150.0)
    finished(tmp_path / "lora-seed1", 2**20, 150.0)
    words = ("--search_rates", "3e-3,1e-3", "--learning_rates", '["lora=2e-3"]')
    call(COMPARE, "--kinds", "linear,lora", "--seeds", 2, "--output", tmp_path, *words)
    assert "| linear | 92.0 ± 2.8 |" in capsys.readouterr().out
    table = (tmp_path / "rates.md").read_text()
    assert "| linear | 105.0 | **110.0** |" in table and "lora" not in table


def test_a_search_may_have_a_smaller_budget_than_the_runs_it_serves(tmp_path, monkeypatch, capsys):
    module, seen = load_script(COMPARE), {}

    def train(words: list[str], **options: object) -> SimpleNamespace:
        folder = Path(next(word for word in words if word.startswith("--output=")).partition("=")[2])
        tried(folder, 100.0 + ("--lr=3e-3" in words), 50.0)
        seen[folder.name] = [word for word in words if word.startswith(("--lr", "--epochs"))]
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", train)
    words = ["--kinds", "linear", "--seeds", "2", "--output", str(tmp_path), "--flags", '["epochs=8"]']
    module.main(parse(module.Config, [*words, "--search_rates", "1e-3,3e-3", "--search_flags", '["epochs=1"]']))
    assert seen == {
        "linear-lr1e-3-search-seed0": ["--lr=1e-3", "--epochs=8", "--epochs=1"],
        "linear-lr3e-3-search-seed0": ["--lr=3e-3", "--epochs=8", "--epochs=1"],
        "linear-lr3e-3-seed0": ["--lr=3e-3", "--epochs=8"],
        "linear-lr3e-3-seed1": ["--lr=3e-3", "--epochs=8"],
    }


def test_a_comparison_without_a_folder_gets_one(tmp_path, monkeypatch, capsys):
    module = load_script(COMPARE)

    def train(words: list[str], **options: object) -> SimpleNamespace:
        folder = Path(next(word for word in words if word.startswith("--output=")).partition("=")[2])
        finished(folder, 2**20, 50.0)
        return SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.subprocess, "run", train)
    module.main(parse(module.Config, ["--kinds", "linear", "--seeds", "1"]))
    (folder,) = (tmp_path / "runs" / "compare").iterdir()
    assert (folder / "linear-seed0").is_dir() and (folder / "results.csv").exists()
    assert f"results: runs/compare/{folder.name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--kinds", "sherl,magic"), "--kinds magic: no such method"),
        (("--task", "chess"), "--task chess: no such task; the tasks are retrieval, video_retrieval, vqa, grounding"),
        (("--seeds", 0), "--seeds 0: must be at least 1"),
        (("--flags", '["epochs"]'), "--flags epochs: write it as name=value"),
        (("--search_rates", "1e-3,fast"), "--search_rates fast: must be numbers above 0"),
    ],
)
def test_wrong_flags(tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        call(COMPARE, "--output", tmp_path, *words)


def test_controls_are_flags_of_the_training_script(tmp_path, monkeypatch):
    module, seen = load_script(COMPARE), {}

    def train(words: list[str], **options: object) -> SimpleNamespace:
        folder = Path(next(word for word in words if word.startswith("--output=")).partition("=")[2])
        finished(folder, 1, 1.0)
        metrics = json.loads((folder / "metrics.json").read_text())
        scores = dict.fromkeys(TASKS["classification"].scores.values(), 50.0)
        (folder / "metrics.json").write_text(json.dumps({**metrics, "before": scores, "after": scores}))
        seen[folder.name] = words
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", train)
    words = ["--task", "classification", "--kinds", "zero-shot,ridge:penalty=2,lora:rank=2:--lr=1e-5,blackvip:eps=2"]
    words += ["--seeds", "1"]
    words += ["--flags", "head.kind=linear", "cache=true", "--output", str(tmp_path)]
    module.main(parse(module.Config, words))
    assert seen["zero-shot-seed0"][-2:] == ["--head.kind=zeroshot", "--adapter.kind=linear"]
    assert seen["ridge-penalty-2-seed0"][-3:] == ["--head.kind=ridge", "--adapter.kind=linear", "--head.penalty=2"]
    lora, blackvip = seen["lora-rank-2---lr-1e-5-seed0"], seen["blackvip-eps-2-seed0"]
    assert {"--adapter.kind=lora", "--adapter.rank=2", "--head.kind=linear"} <= set(lora)
    assert lora[-1] == "--lr=1e-5"  # a later flag overrides an earlier one
    assert (
        blackvip[1].endswith("black_box.py")
        and {"--epochs=10", "--spsa.a=0.001"} < set(blackvip)
        and blackvip[-2:] == ["--eps=0.3", "--eps=2"]
    )
    assert not any("--cache=true" in words for words in seen.values())


def test_every_task_has_a_training_script():
    module = load_script(COMPARE)
    for task in TASKS:
        assert (module.SCRIPTS / task / "train.py").exists(), task
