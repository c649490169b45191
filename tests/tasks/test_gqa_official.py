"""GQA's official figures from official files, as ``tasks/vqa/evaluate.py --gqa_questions`` adds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.scripts import refuse
from vlkit.errors import UserError
from vlkit.tasks.vqa.gqa import official_gqa

FOLDER = Path(__file__).parents[1] / "fixtures" / "metrics" / "gqa"


def answers() -> dict[str, str]:
    return {row["questionId"]: row["prediction"] for row in json.loads((FOLDER / "predictions.json").read_text())}


def test_figures_of_the_official_script() -> None:
    found = official_gqa(FOLDER / "questions.json", FOLDER / "choices.json", answers())
    expected = json.loads((FOLDER / "expected.json").read_text())
    for name in ("accuracy", "consistency", "validity", "plausibility", "distribution"):
        assert found[f"gqa_{name}"] == pytest.approx(expected["main"][name])
    assert found["gqa_accuracy_steps_2"] == pytest.approx(expected["detailed"]["accuracyPerSteps"]["2"][0])


def test_answers_to_balanced_questions_alone_give_no_consistency() -> None:
    questions = json.loads((FOLDER / "questions.json").read_text())
    some = {key: answer for key, answer in answers().items() if questions[key]["isBalanced"]}
    found = official_gqa(FOLDER / "questions.json", None, some)
    assert not {"gqa_consistency", "gqa_validity"} & found.keys() and "gqa_distribution" in found


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('{"1": {"question": "a", "answer": "b"}}')
    with pytest.raises(UserError, match=r'q\.json: question 1: field "isBalanced" is missing'):
        official_gqa(tmp_path / "q.json", None, {})
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=r"c\.json: question .* has no choices"):
        official_gqa(FOLDER / "questions.json", tmp_path / "c.json", answers())
    line = refuse("tasks/vqa/evaluate.py", "--model", "x", "--gqa_choices", tmp_path / "c.json")
    assert "--gqa_choices: needs --gqa_questions" in line
