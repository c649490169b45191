"""GLUE from official files: columns, traps, splits and their indices; own labelled texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.glue_files import sentence, write_glue, write_tsv
from helpers.scripts import call, refuse
from vlkit.data.manifest import Dataset
from vlkit.data.sources.glue import GLUE
from vlkit.data.text_task import task_of, text_records

GLUE_SCRIPT, TEXT_SCRIPT = "data_prep/glue.py", "data_prep/text.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


def prepared(folder: Path, task: str, output: Path, *more: object) -> Dataset:
    call(GLUE_SCRIPT, "--folder", folder, "--task", task, "--output", output, *more)
    return Dataset.open(output, "text")


@pytest.mark.parametrize("name", GLUE)
def test_every_task_is_read_whole(name: str, folder: Path, tmp_path: Path) -> None:
    dataset = prepared(folder, name, tmp_path)
    task = task_of(dataset)
    indices = json.loads((tmp_path / "indices.json").read_text())["splits"]
    for split in ("train", "val", "test"):
        records = text_records(dataset, split)
        assert len(records) == len(indices[split][1])
        for record in records:
            assert record["text"].startswith(("he said", "caf", "two\u2028", "it 's"))
            assert ("text2" in record) == task.pairs and record["label"] is not None
    hidden = [split for split in dataset.splits if split.startswith("hidden")]
    assert hidden == (["hidden_matched", "hidden_mismatched"] if name == "mnli" else ["hidden"])
    assert all("label" not in record for split in hidden for record in text_records(dataset, split, labelled=False))


def test_sources_and_targets_have_the_studies_form(folder: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("cola", "stsb", "mnli", "qnli", "qqp"):
        dataset = prepared(folder, name, tmp_path / name)
        task, record = task_of(dataset), {"text": "A.", "text2": "B."}
        found[name] = task.source(record), task.target(text_records(dataset, "train")[0]["label"])
    assert found["cola"][0] == "cola sentence: A."
    assert found["stsb"] == ("stsb sentence1: A. sentence2: B.", "0.0")
    assert found["mnli"] == ("mnli premise: A. hypothesis B.", "0")  # no colon after hypothesis
    assert found["qnli"][0] == "qnli question: A. sentence: B."
    assert found["qqp"][0] == "qqp question1: A. question2: B."
    assert task_of(Dataset.open(tmp_path / "stsb")).target(3.75) in ("3.8", "3.7")
    assert task_of(Dataset.open(tmp_path / "mnli")).target("contradiction") == "2"


def test_splits_are_permutations_of_seed_42(folder: Path, tmp_path: Path) -> None:
    small = prepared(folder, "rte", tmp_path / "rte")
    order = torch.randperm(11, generator=torch.Generator().manual_seed(42)).tolist()
    assert [record["id"] for record in small.records("val")] == [f"dev/{i}" for i in order[:5]]  # half of 11, floored
    assert [record["id"] for record in small.records("test")] == [f"dev/{i}" for i in order[5:]]
    large = prepared(folder, "sst2", tmp_path / "sst2")
    order = torch.randperm(30, generator=torch.Generator().manual_seed(42)).tolist()
    # The real file gives 1,000 rows to validation; half of one that is smaller.
    assert [record["id"] for record in large.records("val")] == [f"train/{i}" for i in order[:15]]
    assert [record["id"] for record in large.records("test")] == [f"dev/{i}" for i in range(11)]
    mnli = prepared(folder, "mnli", tmp_path / "mnli")
    content = json.loads((tmp_path / "mnli" / "indices.json").read_text())["splits"]
    assert content["val"][0] == "dev_mismatched" and content["test"][0] == "dev_matched"
    assert all(record["label"] != "-" for record in mnli.records("train"))


def test_indices_of_another_run_are_used(folder: Path, tmp_path: Path) -> None:
    prepared(folder, "rte", tmp_path / "first")
    indices = json.loads((tmp_path / "first" / "indices.json").read_text())
    indices["splits"]["val"][1].reverse()
    (tmp_path / "own.json").write_text(json.dumps(indices))
    again = prepared(folder, "rte", tmp_path / "again", "--indices", tmp_path / "own.json")
    first = Dataset.open(tmp_path / "first")
    assert [r["text"] for r in again.records("val")] == [r["text"] for r in first.records("val")][::-1]
    words = ("--folder", folder, "--output", tmp_path / "x", "--indices", tmp_path / "own.json")
    assert "not the indices of cola" in refuse(GLUE_SCRIPT, *words, "--task", "cola")
    indices["splits"]["val"][1][0] = 99
    (tmp_path / "own.json").write_text(json.dumps(indices))
    assert "row 99 of dev.tsv" in refuse(GLUE_SCRIPT, *words, "--task", "rte")


def test_short_lines_and_unsure_labels_are_counted(folder: Path, tmp_path: Path, capsys) -> None:
    prepared(folder, "qqp", tmp_path / "qqp")
    assert "train.tsv: 1 short lines were left out (5)" in capsys.readouterr().out
    prepared(folder, "mnli", tmp_path / "mnli")
    assert 'train.tsv: 7 rows labelled "-"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: [lines[0], "", *lines[1:]], "train.tsv:2: the line is empty"),
        (
            lambda lines: [*lines[:3], lines[3].replace(" ", "\t", 1), *lines[4:]],
            "train.tsv:4: 5 columns, expected 4; a t",
        ),
        (lambda lines: [*lines[:3], "3\tonly"], "train.tsv:4: 2 columns, expected 4; is this another task's file?"),
        (lambda lines: [lines[0].replace("sentence1", "question"), *lines[1:]], "train.tsv:1: column 2 is 'question'"),
        (
            lambda lines: [*lines[:2], "1\ta\tb\t1"],
            "train.tsv:3: label '1', expected one of entailment, not_entailment",
        ),
        (lambda lines: [*lines[:2], "1\t \tb\tentailment"], "train.tsv:3: column 2 holds no text"),
        (lambda lines: [], "train.tsv: is empty"),
    ],
)
def test_wrong_lines_are_named(change, named: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "RTE"
    for file in ("train", "dev"):
        lines = (folder / "RTE" / f"{file}.tsv").read_text().split("\n")[:-1]
        lines = change(lines) if file == "train" else lines
        copy.mkdir(exist_ok=True)
        (copy / f"{file}.tsv").write_text("".join(f"{line}\n" for line in lines))
    words = ("--folder", tmp_path, "--task", "rte", "--output", tmp_path / "out")
    assert named in refuse(GLUE_SCRIPT, *words)


def test_wrong_lines_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    rows = [("index", "sentence1", "sentence2", "label"), *((i, sentence(i), "b", "entailment") for i in range(3))]
    write_tsv(tmp_path / "train.tsv", [*rows, (3, "a", "b", "maybe")])
    write_tsv(tmp_path / "dev.tsv", [*rows, (3, "a", "b", "not_entailment")])
    dataset = prepared(tmp_path, "rte", tmp_path / "out", "--partial")
    assert len(dataset.records("train")) == 3 and "maybe" in (tmp_path / "out" / "wrong.txt").read_text()
    assert "no such folder" in refuse(GLUE_SCRIPT, "--folder", tmp_path / "none", "--task", "rte", "--output", tmp_path)
    assert "cola" in refuse(GLUE_SCRIPT, "--folder", tmp_path, "--task", "snli", "--output", tmp_path)


def test_own_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('Sentence,Label\n"good, ""fine"" day",pos\n' + "bad,neg\nfine,pos\n" * 20)
    call(TEXT_SCRIPT, "--train", tmp_path / "a.csv", "--output", tmp_path / "a", "--val_share", 0.3, "--word", "mood")
    dataset = Dataset.open(tmp_path / "a", "text")
    task = task_of(dataset)
    assert task.labels == ("neg", "pos") and task.metrics == ("accuracy", "f1")
    assert task.source({"text": "x"}) == "mood Sentence: x"
    (tmp_path / "b.jsonl").write_text(
        '{"premise": "a", "hypothesis": "b", "score": 2.5}\n{"premise": "c", "hypothesis": "d", "score": 3}\n'
    )
    call(TEXT_SCRIPT, "--train", tmp_path / "b.jsonl", "--val", tmp_path / "b.jsonl", "--output", tmp_path / "b")
    pairs = Dataset.open(tmp_path / "b", "text")
    assert task_of(pairs).regression and [r["label"] for r in pairs.records("val")] == [2.5, 3.0]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", "text,label\na,x\n,y\n", "a.csv:3: column 'text' holds no text"),
        ("a.csv", "text,label\na,x\nb,\nc,y\n", "a.csv:3: has no label, and other rows of split"),
        ("a.csv", "text,label\na\n", "a.csv:2: 1 columns where the header has 2"),
        ("a.csv", "text,label\n\na,x\n", "a.csv:2: the line is empty"),
        ("a.tsv", 'text\tlabel\n"a\tx\nb\tx\n', "every label is 'x'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text"\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '["a"]\n', "a.jsonl:1: not a JSON object"),
        ("a.json", '{"text": "a"}', "not a list of objects"),
        ("a.csv", "words,label\na,x\n", "no column for the text; name it with --text, there are words, label"),
        ("a.csv", "text\na\nb\n", "no label in"),
        ("a.txt", "text\na\n", "unknown ending '.txt'"),
    ],
)
def test_own_texts_that_are_wrong(name: str, content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert named in refuse(TEXT_SCRIPT, "--train", tmp_path / name, "--output", tmp_path / "out")
