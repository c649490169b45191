"""VQA v2 accuracy, and the answer vocabulary and soft targets of a classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from vlkit.errors import UserError, some
from vlkit.metrics.vqa_text import normalize_answer, one_line

Form = Callable[[str], str]
"""The form in which answers are compared."""


def vqa_metrics(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    answer_types: Mapping[Hashable, str] | None = None,
    form: Form | None = None,
) -> dict[str, float]:
    """VQA v2 accuracy in percent, rounded to 2 decimals like the official evaluator.

    Args:
        predictions: question id -> predicted answer, exactly one for every question of ``references``.
        references: question id -> the (ten) human answers, as in the annotation file.
        answer_types: question id -> "yes/no", "number" or "other"; None omits the figures per type.
        form: how answers are compared; see :func:`answer_score`.

    Returns:
        ``accuracy``, and per answer type ``accuracy_yes_no``, ``accuracy_number``, ``accuracy_other``.

    Raises:
        UserError: a question has no prediction, or a prediction no question.
    """
    scores = answer_scores(predictions, references, form)
    metrics = {"accuracy": _rounded_percent(scores.values())}
    if answer_types is not None:
        by_type = accuracy_by_group(scores, answer_types)
        metrics |= {f"accuracy_{name.replace('/', '_')}": value for name, value in by_type.items()}
    return metrics


def answer_scores(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], form: Form | None = None
) -> dict[Hashable, float]:
    """Accuracy of every question, a fraction, in the order of ``references``; see :func:`vqa_metrics`."""
    missing = [str(key) for key in references if key not in predictions]
    unknown = [str(key) for key in predictions if key not in references]
    if missing:
        raise UserError(f"predictions: no answer for {len(missing)} questions ({some(missing)}); answer every one")
    if unknown:
        raise UserError(f"predictions: {len(unknown)} unknown question ids ({some(unknown)}); is this another split?")
    return {key: answer_score(predictions[key], answers, form) for key, answers in references.items()}


def answer_score(prediction: str, answers: Sequence[str], form: Form | None = None) -> float:
    """Mean over the ways to leave one human out of min(1, matches among the others / 3).

    With ten humans of whom 0, 1, 2, 3, 4 or more agree: 0, 0.3, 0.6, 0.9, 1.

    Args:
        prediction: the answer to score.
        answers: the human answers, unchanged.
        form: compare the forms of answers (:func:`vlkit.metrics.vqa_text.answer_form`). None = as the official
            evaluator: normalised, except where all humans gave the very same string (an official quirk); matching is
            then exact and case sensitive.
    """
    answers = [one_line(answer) for answer in answers]
    prediction = one_line(prediction)
    if form is None:
        form = normalize_answer if len(set(answers)) > 1 else str
    answers, prediction = [form(answer) for answer in answers], form(prediction)
    matches = answers.count(prediction)
    left_out_agrees, left_out_differs = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * left_out_agrees + (len(answers) - matches) * left_out_differs) / len(answers)


def accuracy_by_group(scores: Mapping[Hashable, float], groups: Mapping[Hashable, str]) -> dict[str, float]:
    """Mean score per group (answer type, question type) in percent, rounded to 2 decimals; groups sorted by name."""
    members: dict[str, list[float]] = {}
    for key, score in scores.items():
        members.setdefault(groups[key], []).append(score)
    return {name: _rounded_percent(members[name]) for name in sorted(members)}


def _vocabulary_form(answer: str) -> str:
    return normalize_answer(answer).replace(",", "")


def build_vocabulary(
    answers: Iterable[tuple[Hashable, str]], min_questions: int = 9, form: Form = _vocabulary_form
) -> list[str]:
    """Answers a classifier can give, in order of first occurrence.

    Args:
        answers: (question id, ``multiple_choice_answer``) of every annotation, train and val.
        min_questions: an answer is kept if at least this many distinct questions have it. 9 gives the usual 3,129
            answers on VQA v2 train + val.
        form: maps equal answers to one form; default: normalised, with all commas removed.
    """
    questions: dict[str, set[Hashable]] = {}
    for question, answer in answers:
        questions.setdefault(form(answer), set()).add(question)
    return [answer for answer, having in questions.items() if len(having) >= min_questions]


Label = TypeVar("Label")


def soft_target(answers: Sequence[str], vocabulary: Mapping[str, Label]) -> dict[Label, float]:
    """Label -> score of one question, from its ten human answers, compared as they are given here.

    1, 2, 3, 4 or more equal answers score 0.3, 0.6, 0.9, 1. Answers outside the vocabulary are dropped; a question with
    none left has no positive label, which is still a valid training example.
    """
    counts = Counter(answers)
    return {vocabulary[answer]: min(1.0, count * 3 / 10) for answer, count in counts.items() if answer in vocabulary}


def _rounded_percent(scores: Iterable[float]) -> float:
    scores = list(scores)
    if not scores:
        raise UserError("no questions to score; is the split empty?")
    return round(100 * sum(scores) / len(scores), 2)
