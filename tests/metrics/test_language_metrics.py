"""GQA's official figures, NLVR2 and caption metrics against values worked out by hand."""

from __future__ import annotations

import math
import random
import shutil
from typing import Any

import pytest

from vlkit.errors import UserError
from vlkit.metrics.caption_text import caption_words
from vlkit.metrics.captions import caption_metrics, cider_d, corpus_bleu, rouge_l
from vlkit.metrics.gqa import gqa_by_type, gqa_metrics, reasoning_steps
from vlkit.metrics.java_captions import java_caption_metrics
from vlkit.metrics.nlvr2 import nlvr2_metrics


def question(answer: str, structural: str = "verify", **more: Any) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr", "detailed": more.pop("detailed", "verifyAttr")}
    known = {"question": "Is it red?", "isBalanced": True, "groups": {"global": None}, "entailed": [], "semantic": []}
    return {**known, "answer": answer, "types": types, **more}


def test_gqa_counts_balanced_questions_only_and_compares_exact_strings():
    questions = {
        "1": question("yes"),
        "2": question("red", "query"),
        "3": question("no", isBalanced=False),
        "4": question("dog", "compare"),
    }
    found = gqa_metrics(questions, {"1": "yes", "2": "Red", "4": "dog"})
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert (found["accuracy_binary"], found["accuracy_open"]) == (100, 0)
    assert "consistency" not in found and "validity" not in found
    with pytest.raises(UserError, match=r"1 questions have no answer \(4\); answer all balanced"):
        gqa_metrics(questions, {"1": "yes", "2": "red"})
    with pytest.raises(UserError, match="consistency needs them"):
        gqa_metrics(questions, {"1": "yes", "2": "red", "4": "dog"}, consistency=True)


def test_gqa_consistency_is_over_rightly_answered_questions_and_leaves_out_the_question_itself():
    questions = {
        "a": question("yes", entailed=["a", "b", "c"]),
        "b": question("no", isBalanced=False),
        "c": question("yes", isBalanced=False),
        "d": question("no", entailed=["b"]),  # answered wrong: does not count
        "e": question("no", entailed=["e"]),  # entails nothing else: does not count
    }
    found = gqa_metrics(questions, {"a": "yes", "b": "yes", "c": "yes", "d": "yes", "e": "no"}, consistency=True)
    assert found["consistency"] == 50
    questions["a"]["entailed"].append("x")
    with pytest.raises(UserError, match="question a: entails x"):
        gqa_metrics(questions, dict.fromkeys("abcde", "yes"), consistency=True)


def test_gqa_choices_of_common_questions_are_three_words():
    questions = {"1": question("color", "choose", detailed="twoCommon"), "2": question("yes")}
    choices = {key: {"valid": ["yes", "no"], "plausible": ["yes"]} for key in questions}
    found = gqa_metrics(questions, {"1": "shape", "2": "no"}, choices)
    assert (found["validity"], found["plausibility"]) == (100, 50)


def test_gqa_distribution_is_chi_squared_of_counts_and_takes_the_empty_group():
    # Group "": gold yes x 3, no x 1; predicted yes x 2, maybe x 2 -> (2-3)^2/3 + (0-1)^2/1 = 4/3.
    questions = {str(i): question("no" if i == 3 else "yes", groups={"global": ""}) for i in range(4)}
    questions["5"] = question("red", groups={"global": "colour"})  # right: distance 0
    questions["6"] = question("red")  # no group
    predictions = {"0": "yes", "1": "yes", "2": "maybe", "3": "maybe", "5": "red", "6": "blue"}
    assert gqa_metrics(questions, predictions)["distribution"] == pytest.approx(4 / 3 * 4 / 5 / 100)


def test_gqa_by_type_counts_steps_and_words():
    steps = [
        {"operation": "select", "argument": "sofa (7)"},
        {"operation": "query", "argument": "name"},
        {"operation": "query", "argument": "color"},
        {"operation": "exist", "argument": "?"},
        {"operation": "choose name", "argument": "sofa|bed"},
    ]
    one = question("yes", semantic=steps, question="Is  the sofa red?")
    assert reasoning_steps(one) == 2
    found = gqa_by_type({"1": one, "2": question("no")}, {"1": "yes", "2": "yes"})
    assert found["steps"] == {"2": (100, 1), "0": (0, 1)} and found["length"] == {"4": (100, 1), "3": (0, 1)}


def test_nlvr2_consistency_groups_the_pairs_of_a_sentence():
    labels = {"dev-1-0-0": True, "dev-1-1-0": False, "dev-1-0-1": True, "dev-2-0-0": False}
    found = nlvr2_metrics({**labels, "dev-1-1-0": True}, labels)
    assert found["accuracy"] == 75 and found["consistency"] == pytest.approx(200 / 3)
    with pytest.raises(UserError, match="no prediction for 1 examples"):
        nlvr2_metrics({}, {"dev-1-0-0": True})
    with pytest.raises(UserError, match="split-set-pair-sentence"):
        nlvr2_metrics({"x": True}, {"x": True})


def test_words_of_a_caption():
    assert caption_words("A dog's ball, and it doesn't roll!") == [
        "a",
        "dog",
        "'s",
        "ball",
        "and",
        "it",
        "does",
        "n't",
        "roll",
    ]
    assert caption_words('two medium-sized balls -- (red) "3.5"') == ["two", "medium-sized", "balls", "red", "3.5"]
    assert caption_words("I cannot, gonna gotta; d'you?") == ["i", "can", "not", "gon", "na", "got", "ta", "d'", "you"]
    assert caption_words("...") == []


def test_bleu_by_hand():
    # Words: 4 of 5 right (the second "the" is clipped); pairs: 2 of 4; closest reference has 4 words: no penalty.
    scores = corpus_bleu([["the", "the", "cat", "sat", "on"]], [[["the", "cat", "sat", "on"], ["a"] * 9]])
    assert scores[0] == pytest.approx(4 / 5) and scores[1] == pytest.approx(math.sqrt(4 / 5 * 3 / 4))
    short = corpus_bleu([["a", "b"]], [[["a", "b", "c"]]])
    assert short[1] == pytest.approx(math.exp(1 - 3 / 2))
    assert corpus_bleu([[]], [[["a"]]])[3] == 0


def test_rouge_l_takes_the_best_precision_and_the_best_recall():
    # Common: "a b" of the first (P 2/3, R 2/4), "c" of the second (P 1/3, R 1/1).
    assert rouge_l(["a", "b", "c"], [["a", "x", "b", "y"], ["c"]]) == pytest.approx(
        (1 + 1.44) * (2 / 3) * 1 / (1 + 1.44 * 2 / 3)
    )
    assert rouge_l(["a"], [["b"]]) == rouge_l([], [["b"]]) == 0


def test_cider_d_by_hand():
    # Two images, so a word of one image weighs log 2 and a word of both 0.
    found = cider_d([["red", "cat"], ["red", "cat"]], [[["red", "cat"]], [["red", "dog"]]])
    # Image 1: words "red" (0), "cat" (log 2) and one pair: cosines 1 and 1, no runs of three: mean over four is 1/2.
    # Image 2: neither the word "cat" nor the pair is in the reference.
    assert found == pytest.approx([5.0, 0.0])
    # Clipped: a word said twice counts once; its norm is 2 log 2. One pair more: exp(-1 / 72).
    (first, _) = cider_d([["cat", "cat"], ["x"]], [[["cat"]], [["dog"]]])
    assert first == pytest.approx(10 * math.exp(-1 / 72) * (1 * 1 / (2 * 1)) / 4)
    assert cider_d([["a"]], [[["a"]]]) == [0.0]


def test_caption_metrics_are_in_percent_and_need_references():
    truth = [["a red cat sits here"], ["two dogs run over grass"]]
    found = caption_metrics([texts[0] for texts in truth], truth)
    assert found["cider"] == pytest.approx(1000) and found["bleu4"] == pytest.approx(100) == found["rouge_l"]
    with pytest.raises(UserError, match="do not pair up"):
        caption_metrics(["a"], [[]])


def test_caption_metrics_equal_the_published_scorers_where_these_are_installed():
    scorers = pytest.importorskip("pycocoevalcap.cider.cider")
    bleu, rouge = pytest.importorskip("pycocoevalcap.bleu.bleu"), pytest.importorskip("pycocoevalcap.rouge.rouge")
    draw = random.Random(0)
    words = ["a", "red", "blue", "cat", "dog", "on", "left", "of"]
    sentence = lambda: " ".join(draw.choices(words, k=draw.randint(1, 9)))  # noqa: E731
    references = [[sentence() for _ in range(draw.randint(1, 4))] for _ in range(12)]
    captions = [draw.choice([texts[0], sentence()]) for texts in references]
    truth, given = dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)}
    found = caption_metrics(captions, references, str.split)
    assert found["cider"] == pytest.approx(100 * scorers.Cider().compute_score(truth, given)[0])
    assert found["rouge_l"] == pytest.approx(100 * rouge.Rouge().compute_score(truth, given)[0])
    assert found["bleu4"] == pytest.approx(100 * bleu.Bleu(4).compute_score(truth, given, verbose=0)[0][3])


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_official_caption_metrics_with_java(caplog):
    pytest.importorskip("pycocoevalcap")
    captions = ["A red ball on the mat", "three cats sitting"]
    references = [["A red dog's ball, on the mat.", "A ball lies on a mat"], ["two cats sit"]]
    found = java_caption_metrics(captions, references)
    assert found["meteor"] == pytest.approx(36.1592, abs=1e-3)  # METEOR 1.5's own figure for these sentences
    words = (
        ["a red ball on the mat", "three cats sitting"],
        [
            ["a red dog 's ball on the mat", "a ball lies on a mat"],
            ["two cats sit"],
        ],
    )
    assert {**found, **caption_metrics(*words, str.split)} == found
    assert "spice" in found or "SPICE is left out" in caplog.text


def test_metrics_that_need_java_say_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="java is not on the PATH; install a Java runtime"):
        java_caption_metrics(["a"], [["a"]])
