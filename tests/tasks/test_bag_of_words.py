"""The bag-of-words control of task text: what it can learn, what it cannot, and its place in a comparison."""

from __future__ import annotations

import json

import pytest

from helpers.scripts import call, refuse
from vlkit.data.manifest import write_dataset
from vlkit.data.text_task import TextTask

pytest.importorskip("sklearn")
from vlkit.tasks.text.bag_of_words import features_of, fit_bag_of_words

WORDS = ("red", "blue", "green", "black", "white", "pink")
KIND = TextTask("same", ("sentence1:", "sentence2:"), "classification", ("no", "yes"), ("accuracy", "f1"))


def pairs(count: int, start: int = 0) -> list[dict]:
    """Whether both sentences name the same colour, which the shared words show."""
    rows = []
    for n in range(start, start + count):
        one, other = WORDS[n % 6], WORDS[(n % 6 + (n // 6) % 2 * (1 + n % 5)) % 6]
        texts = {"text": f"a {one} house", "text2": f"there is a {other} house"}
        rows.append({"id": f"t/{n}", **texts, "label": "yes" if one == other else "no"})
    return rows


def test_word_overlap_is_learned():
    found = fit_bag_of_words(KIND, pairs(96), pairs(24, 96), pairs(48, 120))
    assert found.test["accuracy"] == 100 and found.test["invalid"] == 0 and found.parameters > 20
    assert features_of({"text": "A b, c"}) == ["0:a", "0:b", "0:,", "0:c", "0:a b", "0:b ,", "0:, c"]
    pair = features_of({"text": "a b", "text2": "b c"})
    assert set(pair[6:]) == {"both:b", "only0:a", "only1:c"}


def test_numbers_are_predicted():
    kind = TextTask("score", ("",), "regression", (), ("pearson", "spearman"))
    rows = [{"id": str(n), "text": "good " * (n % 5) + "bad " * (4 - n % 5), "label": float(n % 5)} for n in range(60)]
    assert fit_bag_of_words(kind, rows[:40], rows[40:50], rows[50:]).test["pearson"] > 95


def test_the_command_and_the_comparison(tmp_path, capsys):
    splits = {"train": pairs(60), "val": pairs(12, 60), "test": pairs(24, 72)}
    extra = {"text": KIND.to_dict()}
    (tmp_path / "media").mkdir()
    write_dataset(
        tmp_path / "data", name="same", task="text", splits=splits, media_root=tmp_path, source="t", extra=extra
    )
    words = ("tasks/text/bag_of_words.py", "--data.root", tmp_path / "data", "--output", tmp_path / "run")
    call(*words)
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["after"]["score"] == 100 and report["before"]["accuracy"] == 50 and report["split"] == "test"
    assert "bag-of-words" in capsys.readouterr().out and "already holds a run" in refuse(*words)
    flags = ("--flags", f"data.root={tmp_path / 'data'}", "epochs=1")
    call(
        "tasks/compare.py",
        "--task",
        "text",
        "--kinds",
        "bag-of-words",
        "--seeds",
        1,
        *flags,
        "--output",
        tmp_path / "c",
    )
    table = (tmp_path / "c" / "results.md").read_text()
    assert "| bag-of-words | 100.0 |" in table
