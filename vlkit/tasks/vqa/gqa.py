"""GQA's official figures for the answers of a model, from the official files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.metrics.gqa import gqa_by_type, gqa_metrics

FIELDS = ("question", "answer", "isBalanced", "types", "groups", "entailed", "semantic")


def official_gqa(questions: Path, choices: Path | None, predictions: Mapping[Any, str]) -> dict[str, float]:
    """``gqa_accuracy gqa_accuracy_binary gqa_accuracy_open gqa_distribution``, and accuracy per type and length.

    With answers to every question of a file of all questions also ``gqa_consistency``; with choices also
    ``gqa_validity`` and ``gqa_plausibility``.

    Args:
        questions: the official question file (``testdev_all_questions.json``, ...).
        choices: the official choices file of the split.
        predictions: question id -> answer.

    Raises:
        UserError: a file cannot be read or is another one, or answers are missing.
    """
    asked = _questions(questions)
    allowed = None if choices is None else _choices(choices, asked)
    answers = {str(key): answer for key, answer in predictions.items()}
    every = any(not question["isBalanced"] for question in asked.values()) and asked.keys() <= answers.keys()
    metrics = gqa_metrics(asked, answers, allowed, consistency=every)
    for name, groups in gqa_by_type(asked, answers).items():
        metrics |= {f"accuracy_{name}_{group}": score for group, (score, _) in groups.items()}
    return {f"gqa_{name}": value for name, value in metrics.items()}


def _questions(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no questions; give GQA's official question file")
    for key, question in content.items():
        missing = [field for field in FIELDS if not isinstance(question, dict) or field not in question]
        if missing:
            raise UserError(f'{path}: question {key}: field "{missing[0]}" is missing; give GQA\'s official file')
    return content


def _choices(path: Path, questions: Mapping[str, Any]) -> dict[str, Any]:
    content = read_json(path)
    for key in questions:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, dict) or not {"valid", "plausible"} <= found.keys():
            raise UserError(f"{path}: question {key} has no choices; give the choices file of the same split")
    return content
