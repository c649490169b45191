"""GQA's official evaluation (Hudson and Manning, CVPR 2019): accuracy by type, consistency, validity, distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from vlkit.errors import UserError, some
from vlkit.metrics.vqa import accuracy_by_group

STRUCTURE = {"verify": "binary", "logical": "binary", "choose": "binary", "compare": "binary", "query": "open"}
"""Structural type of a question -> whether it is binary or open, as in the official script."""
COMMON = {"color", "material", "shape"}
"""Valid and plausible answers to questions about what two things have in common."""
NOT_STEPS = ("exist", "query: name", "choose name")
"""Operations of a program that do not count as reasoning steps."""

Question = Mapping[str, Any]
"""A question of the official file: ``question answer isBalanced types groups entailed semantic``."""


def binary_and_open(scores: Mapping[Hashable, float], types: Mapping[Hashable, str | None]) -> dict[str, float]:
    """``accuracy_binary`` and ``accuracy_open`` in percent; empty unless every question has a GQA type.

    Args:
        scores: question id -> 1 or 0.
        types: question id -> structural type (verify, logical, choose, compare, query).
    """
    if not set(types.values()) <= STRUCTURE.keys():
        return {}
    groups = accuracy_by_group(scores, {key: STRUCTURE[kind] for key, kind in types.items() if kind})
    return {f"accuracy_{name}": value for name, value in groups.items()}


def gqa_metrics(
    questions: Mapping[str, Question],
    predictions: Mapping[str, str],
    choices: Mapping[str, Mapping[str, list[str]]] | None = None,
    consistency: bool = False,
) -> dict[str, float]:
    """The main figures of the official script, all in percent but ``distribution`` (lower is better).

    Answers are compared as exact strings. Every figure but consistency counts balanced questions only.

    Args:
        questions: question id -> question, as in the official file.
        predictions: question id -> answer; for every question with ``consistency``, otherwise for the balanced ones.
        choices: question id -> its ``valid`` and ``plausible`` answers; without them both figures are left out.
        consistency: whether to compute it; entailed questions are mostly unbalanced, so it needs all predictions.

    Returns:
        ``accuracy accuracy_binary accuracy_open distribution``, and as asked for ``consistency validity plausibility``.

    Raises:
        UserError: a prediction is missing, or no question is balanced.
    """
    balanced = _balanced(questions, predictions, consistency)
    right = {key: predictions[key] == question["answer"] for key, question in balanced.items()}
    metrics = {"accuracy": _percent(right.values())}
    metrics |= {f"accuracy_{name}": score for name, (score, _) in _grouped(balanced, right, _openness).items()}
    if consistency:
        metrics["consistency"] = _consistency(questions, predictions, right)
    if choices is not None:
        for name, field in (("validity", "valid"), ("plausibility", "plausible")):
            metrics[name] = _percent(
                predictions[key] in allowed_answers(question, choices[key][field]) for key, question in balanced.items()
            )
    metrics["distribution"] = answer_distribution(balanced, predictions)
    return metrics


def gqa_by_type(
    questions: Mapping[str, Question], predictions: Mapping[str, str]
) -> dict[str, dict[str, tuple[float, int]]]:
    """Accuracy in percent and number of balanced questions per ``structural``, ``semantic`` and ``detailed`` type,
    number of reasoning ``steps`` and number of words (``length``); groups in the order of their first question.

    Raises:
        UserError: a prediction is missing, or no question is balanced.
    """
    balanced = _balanced(questions, predictions, False)
    right = {key: predictions[key] == question["answer"] for key, question in balanced.items()}
    groups: dict[str, Callable[[Question], Hashable]] = {
        "structural": lambda question: question["types"]["structural"],
        "semantic": lambda question: question["types"]["semantic"],
        "detailed": lambda question: question["types"]["detailed"],
        "steps": reasoning_steps,
        "length": lambda question: len(question["question"].split()),
    }
    return {name: _grouped(balanced, right, group) for name, group in groups.items()}


def reasoning_steps(question: Question) -> int:
    """Operations of a question's program that are reasoning steps."""
    operations = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    return sum(not any(word in operation for word in NOT_STEPS) for operation in operations)


def allowed_answers(question: Question, stated: Iterable[str]) -> set[str]:
    """The answers that count as valid or plausible, given those of the choices file."""
    return COMMON if "Common" in question["types"]["detailed"] else set(stated)


def answer_distribution(balanced: Mapping[str, Question], predictions: Mapping[str, str]) -> float:
    """How far predicted answers are from the true ones: chi-squared per global group, weighted by its size, / 100.

    Counts of predictions that are no true answer of the group are ignored. A group named by an empty text counts.
    """
    true: dict[str, Counter[str]] = {}
    given: dict[str, Counter[str]] = {}
    for key, question in balanced.items():
        group = question["groups"]["global"]
        if group is not None:
            true.setdefault(group, Counter())[question["answer"]] += 1
            given.setdefault(group, Counter())[predictions[key]] += 1
    total = sum(counts.total() for counts in true.values())
    if not total:
        return 0.0
    distances = {
        group: sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        for group, counts in true.items()
    }
    return sum(distances[group] * counts.total() for group, counts in true.items()) / total / 100


def _balanced(questions: Mapping[str, Question], predictions: Mapping[str, str], every: bool) -> dict[str, Question]:
    balanced = {key: question for key, question in questions.items() if question["isBalanced"]}
    missing = [key for key in (questions if every else balanced) if key not in predictions]
    if missing:
        which = "all questions, because consistency needs them" if every else "all balanced questions"
        raise UserError(f"predictions: {len(missing)} questions have no answer ({some(missing)}); answer {which}")
    if not balanced:
        raise UserError('questions: none has "isBalanced": true; official figures use only balanced questions')
    return balanced


def _consistency(questions: Mapping[str, Question], predictions: Mapping[str, str], right: Mapping[str, bool]) -> float:
    """Share of right answers among the questions that a rightly answered one entails, averaged over these."""
    shares = []
    for key, correct in right.items():
        entailed = [other for other in questions[key]["entailed"] if other != key]
        if correct and entailed:
            unknown = [other for other in entailed if other not in questions]
            if unknown:
                raise UserError(
                    f"question {key}: entails {some(unknown)}, not in the file; give the file of all questions"
                )
            shares.append(_percent(predictions[other] == questions[other]["answer"] for other in entailed))
    return sum(shares) / len(shares) if shares else 0.0


def _openness(question: Question) -> str:
    return "open" if question["types"]["structural"] == "query" else "binary"


def _grouped(
    questions: Mapping[str, Question], right: Mapping[str, bool], group: Callable[[Question], Hashable]
) -> dict[str, tuple[float, int]]:
    members: dict[str, list[bool]] = {}
    for key, question in questions.items():
        members.setdefault(str(group(question)), []).append(right[key])
    return {name: (_percent(values), len(values)) for name, values in members.items()}


def _percent(values: Iterable[bool]) -> float:
    values = list(values)
    return 100 * sum(values) / len(values)
