"""Answers as people write them are compared in one form: targets, vocabulary, evaluation, written answers."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch

from vlkit.data.manifest import Dataset, write_dataset
from vlkit.metrics.vqa_text import answer_form
from vlkit.tasks.vqa.data import (
    AnswerTokens,
    SoftTargets,
    answer_vocabulary,
    form_of,
    main_answer,
    warn_of_unlabelled,
)
from vlkit.tasks.vqa.evaluate import by_question_type, prior_metrics, score
from vlkit.tasks.vqa.losses import written_loss

WRITTEN = {
    "yes": ["Yes", "yes", "YES.", " yes\n", "yes!", "Yes,"],
    "2": ["Two", "2", "two", "TWO."],
    "t shirt": ["T-shirt", "t-shirt", "a t-shirt", "The T-Shirt."],
    "10000": ["10,000", "10000"],
    "red": ["red.", "Red", "the red"],
    "don't know": ["dont know", "Don't know"],
    "a": ["A", "a", "A."],
    "the": ["The"],
    "b": ["B", "b"],
}


def record(number: int, answers: list[str], **fields: object) -> dict:
    ids = {"id": f"q/{number}", "question_id": number, "image": "x.png", "question": "What is it?"}
    return {**ids, "answers": answers, **fields}


def dataset(root: Path, records: list[dict], name: str = "own") -> Dataset:
    root.mkdir(exist_ok=True)
    return write_dataset(root, name=name, task="vqa", splits={"train": records}, media_root=root, source=None)


@pytest.mark.parametrize("form", WRITTEN)
def test_forms(form: str) -> None:
    assert {answer_form(text) for text in WRITTEN[form]} == {form}
    assert answer_form(form) == form


@pytest.mark.parametrize("kept", [list(WRITTEN), [ways[0] for ways in WRITTEN.values()]], ids=["normalised", "raw"])
def test_every_spelling_has_its_label(kept: list[str]) -> None:
    targets = SoftTargets(kept)
    for label, ways in enumerate(WRITTEN.values()):
        for way in ways:
            assert targets([[way] * 10])[0].tolist() == [float(i == label) for i in range(len(kept))]
    spelled = ["Yes", "yes", "yes."] + ["No"] * 2 + ["?"] * 5
    torch.testing.assert_close(targets([spelled])[0], torch.tensor([0.9] + [0.0] * (len(kept) - 1)))


def test_labels_of_one_form_share_the_score() -> None:
    """A vocabulary from a file may hold two spellings; each of them scores as right."""
    assert SoftTargets(["t shirt", "no", "T-shirt"])([["t-shirt"] * 10]).tolist() == [[1, 0, 1]]


def test_spellings_count_together_in_the_vocabulary(tmp_path: Path) -> None:
    records = [record(i, [way] * 10) for i, way in enumerate(WRITTEN["yes"] + WRITTEN["2"] + ["once"])]
    own = dataset(tmp_path / "own", records)
    assert answer_vocabulary(own, ["train"]) == ["yes", "2", "once"]  # one answer each: 1 question is enough
    assert answer_vocabulary(own, ["train"], 5) == ["yes"]
    several = [record(i, ["Net", "net.", "mesh", "mesh", "a net"] * 2) for i in range(9)]
    assert main_answer(several[0]) == "net"
    assert answer_vocabulary(dataset(tmp_path / "several", several), ["train"]) == ["net"]
    gqa = dataset(tmp_path / "gqa", records, name="gqa")
    assert answer_vocabulary(gqa, ["train"])[:3] == ["Yes", "yes", "YES."]
    assert SoftTargets(["Yes"], form_of(gqa))([["yes"] * 10, ["Yes"] * 10]).tolist() == [[0], [1]]


def test_evaluation_compares_forms_also_where_all_agree() -> None:
    records = [
        record(1, ["Yes"] * 10, answer_type="yes/no"),
        record(2, ["Two"] * 7 + ["2"] * 3, answer_type="number"),
        record(3, ["T-shirt"] * 10, answer_type="other"),
        record(4, ["no"] * 10, answer_type="yes/no"),
    ]
    metrics = score(records, {1: "yes", 2: "2", 3: "t shirt", 4: "yes"})
    assert metrics == {
        "accuracy": 75.0,
        "accuracy_yes_no": 50.0,
        "accuracy_number": 100.0,
        "accuracy_other": 100.0,
        "official_accuracy": 25.0,
    }
    assert "official_accuracy" not in score(records[1:2], {2: "two"})
    assert prior_metrics(records, records)[0] == "yes"
    train = [record(i, [way] * 10) for i, way in enumerate(["Yes", "yes", "no", "no", "YES"])]
    most, metrics = prior_metrics(train, records[:1])
    assert (most, metrics["accuracy"], metrics["question_words_accuracy"]) == ("yes", 100, 100)


def test_gqa_is_exact_and_compare_is_binary() -> None:
    kinds = {"verify": "yes", "logical": "no", "choose": "left", "compare": "Shape", "query": "Lamp"}
    records = [record(i, [answer] * 10, answer_type=kind) for i, (kind, answer) in enumerate(kinds.items())]
    metrics = score(records, {0: "yes", 1: "no", 2: "left", 3: "shape", 4: "Lamp"}, str)
    assert (metrics["accuracy"], metrics["accuracy_binary"], metrics["accuracy_open"]) == (80, 75, 100)
    assert metrics["accuracy_compare"] == 0 and "official_accuracy" not in metrics
    assert "accuracy_open" not in score([record(1, ["x"] * 10, answer_type="other")], {1: "x"})


def test_questions_without_a_label_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = dataset(tmp_path, [record(i, [way] * 10) for i, way in enumerate(["Yes", "yes.", "blue", "Green"])])
    with caplog.at_level(logging.WARNING):
        warn_of_unlabelled(own, ["train", "train"], ["yes", "no"])
        warn_of_unlabelled(own, ["train"], ["Yes", "green", "blue"])
    assert [line.message.partition(":")[0] for line in caplog.records] == [
        "2 of 4 questions of own/train have no answer among the 2 of the vocabulary"
    ]


def test_what_a_decoder_learns_to_write_is_the_form() -> None:
    written: list[str] = []
    AnswerTokens(lambda texts: written.extend(texts) or torch.zeros(len(texts), 1))([["Two"] * 10, ["T-shirt"] * 10])
    AnswerTokens(lambda texts: written.extend(texts) or torch.zeros(len(texts), 1), str)([["Two"] * 10])
    assert written == ["2", "t shirt", "Two"]


def test_a_decoder_draws_answers_by_their_soft_score() -> None:
    answers = ["red"] * 6 + ["blue"] * 3 + ["Pink"]  # scores 1, 0.9 and 0.3
    counts: Counter[tuple[int, float]] = Counter()
    draw = AnswerTokens(lambda texts: torch.tensor([[len(text)] for text in texts]))
    for _ in range(300):
        tokens, scores = draw([answers] * 10)
        counts.update(zip(tokens[:, 0].tolist(), (round(score, 4) for score in scores.tolist()), strict=True))
    assert set(counts) == {(3, 1.0), (4, 0.9), (4, 0.3)}
    assert [counts[key] / 3000 for key in ((3, 1.0), (4, 0.9), (4, 0.3))] == pytest.approx(
        [1 / 2.2, 0.9 / 2.2, 0.3 / 2.2], abs=0.04
    )


def test_the_loss_of_a_written_answer_counts_each_question_by_its_score() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.tensor([[4, 1, 0], [2, 5, 1]])
    logs = logits.log_softmax(-1)
    first, second = -(logs[0, 0, 4] + logs[0, 1, 1]) / 2, -(logs[1, 0, 2] + logs[1, 1, 5] + logs[1, 2, 1]) / 3
    found = written_loss(logits, targets, torch.tensor([0.3, 1.0]), 0)
    assert found.item() == pytest.approx(((0.3 * first + second) / 2).item(), rel=1e-5)


def test_accuracy_of_each_question_type() -> None:
    records = [record(i, ["red"] * 10, question_type=kind) for i, kind in enumerate(("what is", "is it", "what is"))]
    found = by_question_type(records, {0: "red", 1: "red", 2: "blue"})
    assert found == {"is it": 100.0, "what is": 50.0}
    assert by_question_type([*records, record(3, ["red"] * 10)], dict.fromkeys(range(4), "red")) == {}
