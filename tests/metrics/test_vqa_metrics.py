"""VQA accuracy, normalisation, vocabulary and soft targets; GLUE scores at their edges."""

from __future__ import annotations

import pytest

from vlkit.errors import UserError
from vlkit.metrics import glue
from vlkit.metrics.vqa import accuracy_by_group, answer_score, answer_scores, build_vocabulary, soft_target, vqa_metrics
from vlkit.metrics.vqa_text import normalize_answer, normalize_punctuation, normalize_words


def leave_one_out(prediction: str, answers: list[str]) -> float:
    """The definition, for answers that need no normalisation."""
    scores = []
    for human in range(len(answers)):
        others = answers[:human] + answers[human + 1 :]
        scores.append(min(1, others.count(prediction) / 3))
    return sum(scores) / len(scores)


def test_score_by_number_of_humans_who_agree():
    for agree, expected in enumerate((0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1)):
        answers = ["cat"] * agree + ["dog"] * (10 - agree)
        assert answer_score("cat", answers) == pytest.approx(expected) == pytest.approx(leave_one_out("cat", answers))


def test_nothing_is_normalised_when_all_humans_agree():
    assert answer_score("Yes", ["yes"] * 10) == 0
    assert answer_score(" yes\n", ["yes"] * 10) == 1
    assert answer_score("Yes", ["yes"] * 9 + ["no"]) == 1
    assert answer_score("two dogs!", ["The 2 dogs"] * 5 + ["3"] * 5) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10,000 feet", "10000 feet"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("t-shirt", "t shirt"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("a.m.", "am"),
        ("3.5", "3.5"),
        ("." * 40, "." * 8),
    ],
)
def test_punctuation(text, expected):
    assert normalize_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("None of the above", "0 of above"),
        ("ten eleven", "10 eleven"),
        ("a", ""),
        ("Im cant dont", "im can't don't"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("its lets twas", "its lets 'twas"),
    ],
)
def test_words(text, expected):
    assert normalize_words(text) == expected


def test_order_of_steps():
    assert normalize_answer("The Two t-shirts.") == "2 t shirts"


def test_metrics_per_type_are_rounded():
    references = {1: ["yes"] * 10, 2: ["2"] * 3 + ["3"] * 7, 3: ["red"] * 10}
    predictions = {3: "blue", 2: "2", 1: "yes"}
    types = {1: "yes/no", 2: "number", 3: "other"}
    metrics = vqa_metrics(predictions, references, types)
    assert metrics == {
        "accuracy": 63.33,
        "accuracy_number": 90.0,
        "accuracy_other": 0.0,
        "accuracy_yes_no": 100.0,
    }
    assert vqa_metrics(predictions, references) == {"accuracy": 63.33}
    scores = answer_scores(predictions, references)
    assert accuracy_by_group(scores, {1: "is it", 2: "how many", 3: "is it"}) == {"how many": 90.0, "is it": 50.0}


def test_every_question_needs_one_answer():
    references = {1: ["a"] * 10, 2: ["b"] * 10}
    with pytest.raises(UserError, match=r"no answer for 1 questions \(2\)"):
        vqa_metrics({1: "a"}, references)
    with pytest.raises(UserError, match=r"1 unknown question ids \(7\)"):
        vqa_metrics({1: "a", 2: "b", 7: "c"}, references)
    with pytest.raises(UserError, match="is the split empty"):
        vqa_metrics({}, {})


def test_vocabulary_counts_questions_and_keeps_the_order_of_first_occurrence():
    answers = [(1, "no"), (2, "Yes."), (3, "yes"), (3, "yes"), (4, "no"), (5, "a cat"), (5, "cat"), (6, "x")]
    assert build_vocabulary(answers, min_questions=2) == ["no", "yes"]
    assert build_vocabulary(answers, min_questions=1) == ["no", "yes", "cat", "x"]


def test_soft_target_counts_raw_answers():
    answers = ["yes"] * 3 + ["Yes"] * 4 + ["no"] + ["maybe"] * 2
    assert soft_target(answers, {"yes": 5, "no": 0}) == pytest.approx({5: 0.9, 0: 0.3})
    assert soft_target(answers, {"cat": 0}) == {}
    assert soft_target(["yes"] * 10, {"yes": 1}) == {1: 1.0}


def test_glue_of_constant_predictions():
    labels, constant = [0, 1, 1, 0], [1, 1, 1, 1]
    assert glue.accuracy(constant, labels) == 50
    assert glue.f1(constant, labels) == pytest.approx(200 / 3)
    assert glue.f1([0, 0], [0, 0]) == 0
    for same in ([0.1] * 3, [3.3] * 7, [1 / 3] * 5):  # the mean of these is not quite the value
        assert glue.pearson(same, [1.1] * len(same)) == glue.pearson(same, list(range(len(same)))) == 0
    assert glue.matthews(constant, labels) == glue.pearson(constant, labels) == glue.spearman(constant, labels) == 0
    assert glue.spearman([1, 2, 2, 9], [10, 20, 20, 30]) == pytest.approx(100)
    assert glue.matthews([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(100 * 2 / (2 * 1 * 3 * 2) ** 0.5)
    with pytest.raises(ValueError, match="pair up"):
        glue.accuracy([1], [1, 0])
