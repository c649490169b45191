"""The example of docs/add-a-task.md is a whole task: the code on the page is what runs here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import vlkit
import vlkit.tasks
from helpers.scripts import ROOT, load_script
from vlkit.cli.config import parse
from vlkit.data import records
from vlkit.data.manifest import write_dataset
from vlkit.tasks.registry import TASKS

PAGE = ROOT / "docs" / "add-a-task.md"
BLOCK = re.compile(r'```python title="([^"]+)"\n(.*?)```', re.DOTALL)
EDITED = "vlkit/data/records.py"
COUNTS = {"train": 8, "val": 4}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The training script of the page, with its task in place, and both entries made."""
    code = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    place = tmp_path_factory.mktemp("page")
    for name, text in code.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    outside = [name for name in code if not name.startswith(("vlkit/tasks/rating/", "tasks/rating/"))]
    assert outside == [EDITED], "a new task edits one file outside its folders, beside the registry"
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlkit.tasks, "__path__", [*vlkit.tasks.__path__, str(place / "vlkit" / "tasks")])
        exec(compile(code[EDITED], EDITED, "exec"), vars(records))
        from vlkit.tasks.rating.task import TASK

        patch.setitem(TASKS, TASK.name, TASK)
        yield place / "tasks" / "rating" / "train.py"
    del records.RECORDS["rating"], records._rating_problem
    for name in {*sys.modules} - before:
        if name.startswith("vlkit.tasks.rating"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def dataset(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images; the lighter one is, the higher its rating."""
    root, splits = tmp_path_factory.mktemp("rated"), {}
    for split, count in COUNTS.items():
        for i in range(count):
            Image.new("RGB", (32, 32), (30 * i, 30 * i, 30 * i)).save(root / f"{split}{i}.png")
        rated = [{"id": f"{split}{i}", "image": f"{split}{i}.png", "rating": 2 + i / 2} for i in range(count)]
        splits[split] = rated
    write_dataset(root, name="rated", task="rating", splits=splits, media_root=root, source="made for a test")
    return root


def test_the_example_trains_saves_and_loads(script: Path, dataset: Path, tmp_path: Path) -> None:
    module = load_script(str(script))
    words = ["--data.root", dataset, "--output", tmp_path / "run", "--batch_size", 4, "--epochs", 10, "--lr", 0.001]
    module.main(parse(module.Config, [str(word) for word in words]))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["task"], metrics["split"]) == ("rating", "val") and metrics["saved_activation_bytes"] > 0
    assert metrics["after"]["mean_error"] < metrics["before"]["mean_error"]
    model = vlkit.load(tmp_path / "run", device="cpu")
    errors = [abs(model.rate(dataset / f"val{i}.png") - (2 + i / 2)) for i in range(COUNTS["val"])]
    assert sum(errors) / len(errors) == pytest.approx(metrics["after"]["mean_error"], abs=1e-4)


def test_its_records_are_checked(script: Path, dataset: Path) -> None:
    assert records.record_problem({"id": "1", "image": "1.png", "rating": 3.5}, "rating") is None
    assert "field \"rating\" is 'good'" in records.record_problem(
        {"id": "1", "image": "1.png", "rating": "good"}, "rating"
    )
