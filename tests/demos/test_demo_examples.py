"""The answers that tabs open with are stored, and computed anew when something that they depend on is another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.scripts import ROOT


@pytest.fixture
def worked(monkeypatch, tmp_path: Path):
    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(ROOT / "demos")
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    from tabs.examples import worked

    return worked


def studio(fingerprint: str) -> SimpleNamespace:
    """Models with one adapter."""
    models = SimpleNamespace(fingerprints={"vqa": {"SHERL": fingerprint}})
    album = SimpleNamespace(images=Path("/cache/demo/v0/pictures"))
    return SimpleNamespace(models=models, about={"device": "cpu"}, album=album)


def test_an_answer_is_stored_until_adapter_or_example_change(worked, tmp_path: Path):
    file, calls = tmp_path / "image.png", []

    def answer(image: Image.Image, question: str) -> str:
        calls.append(question)
        return f"{image.size} {question}"

    def ask(fingerprint: str, question: str) -> str:
        return worked(studio(fingerprint), "ask", answer, file, question)

    Image.new("RGB", (20, 30)).save(file)
    assert ask("a", "how many?") == ask("a", "how many?") == "(20, 30) how many?"
    assert len(calls) == 1
    assert ask("b", "how many?") == "(20, 30) how many?" and len(calls) == 2
    assert ask("b", "which?") == "(20, 30) which?" and len(calls) == 3
    Image.new("RGB", (40, 30)).save(file)
    assert ask("b", "which?") == "(40, 30) which?" and len(calls) == 4


def test_a_failure_is_not_stored_and_a_damaged_file_is_replaced(worked, tmp_path: Path):
    def fail() -> str:
        raise ZeroDivisionError

    assert worked(studio("a"), "ask", fail) is None
    assert worked(studio("a"), "ask", lambda: "now") == "now"
    (stored,) = (tmp_path / "cache").rglob("ask.json")
    stored.write_text("[1")
    assert worked(studio("a"), "ask", lambda: "again") == "again"


def test_the_shipped_answers_are_those_of_the_program():
    pytest.importorskip("gradio")
    script = "import json, tabs.examples; print(json.dumps(tabs.examples.answers()))"
    places = os.pathsep.join(map(str, (ROOT, ROOT / "demos")))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places}
    )
    assert run.returncode == 0, run.stderr
    shipped = json.loads((ROOT / "vlkit/assets/demo_answers.json").read_text())
    found = json.loads(run.stdout.splitlines()[-1])
    assert (
        list(found)
        == list(shipped)
        == ["ask", "caption", "ground", "moments", "classify", "compare_ask", "compare_ground"]
    )
    for tab, entry in found.items():
        assert entry["key"] == shipped[tab]["key"], f"{tab}: other adapters or another example; {REMAKE}"
        words, numbers = apart(entry["answer"])
        others, expected = apart(shipped[tab]["answer"])
        assert words == others, f"{tab}: another answer; {REMAKE}"
        assert numbers == pytest.approx(expected, abs=0.2, rel=1e-3), f"{tab}: another answer; {REMAKE}"


REMAKE = "to store the new answers: PYTHONPATH=.:demos python -m tabs.examples"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def apart(answer: object) -> tuple[str, list[float]]:
    """An answer without its numbers, and these."""
    text = json.dumps(answer)
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]
