"""The answers that tabs open with are stored, and computed anew when something that they depend on is another."""

from __future__ import annotations

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
    return SimpleNamespace(models=models, about={"device": "cpu"})


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
