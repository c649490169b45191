"""Task text: every command on a small dataset, methods and heads, invalid outputs, the demo pairs, wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vlkit
from helpers import tiny
from helpers.scripts import call, refuse
from vlkit.adapters import ADAPTERS
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.text_task import TextTask, task_of
from vlkit.drawn.captions_pretrain import OPENINGS
from vlkit.drawn.text_pairs import CHANGES, TASKS, PairKind, pairs_of
from vlkit.drawn.world import sample_scenes
from vlkit.encoders.bases import text_base
from vlkit.errors import UserError
from vlkit.tasks.text.bag_of_words import fit_bag_of_words
from vlkit.tasks.text.data import reading_of
from vlkit.tasks.text.evaluate import Label, score
from vlkit.tasks.text.losses import label_loss
from vlkit.tasks.text.model import ClassifyOptions, WriteOptions, build_model
from vlkit.tasks.text.step_bench import T5Bench

TRAIN, EVALUATE, PREDICT = (f"tasks/text/{name}.py" for name in ("train", "evaluate", "predict"))
QUICK = ("--epochs", 1, "--batch_size", 4, "--device", "cpu")
MOOD = TextTask("mood", ("sentence:",), "classification", ("bad", "good"), ("accuracy", "f1"))
LIKE = TextTask("like", ("sentence1:", "sentence2:"), "regression", (), ("pearson", "spearman"))


def written(root: Path, task: TextTask, count: int = 8) -> Path:
    """A dataset with splits train, val, test and one without labels."""
    records = {}
    for split in ("train", "val", "test", "hidden"):
        rows = []
        for i in range(count):
            record = {"id": f"{split}/{i}", "text": f"a {'red' if i % 2 else 'blue'} cat {i}"}
            if task.pairs:
                record["text2"] = f"a red cat {i}"
            if split != "hidden":
                record["label"] = i % 2 * 2.5 + 1 if task.regression else task.labels[i % len(task.labels)]
            rows.append(record)
        records[split] = rows
    extra = {"text": task.to_dict()}
    write_dataset(root, name="made", task="text", splits=records, media_root=root, source="test", extra=extra)
    return root


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("mood"), MOOD)


@pytest.fixture(scope="module")
def trained(mood: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", mood, "--output", folder, *QUICK)
    return folder


def test_train_evaluate_predict(trained: Path, mood: Path, tmp_path: Path, capsys) -> None:
    report = json.loads((trained / "metrics.json").read_text())
    assert report["task"] == "text" and {"score", "accuracy", "f1", "invalid"} <= set(report["after"])
    assert report["before"]["accuracy"] == 50 and report["saved_activation_bytes"] > 0
    call(EVALUATE, "--model", trained, "--data.root", mood, "--json", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["score"] == pytest.approx(report["after"]["score"])
    call(PREDICT, "--model", trained, "--data.root", mood, "--split", "hidden", "--output", tmp_path / "out.tsv")
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 9 and lines[1].split("\t")[1] in ("bad", "good")
    assert [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(8)]
    call(PREDICT, "--model", trained, "--data.root", mood, "--split", "hidden", "--output", tmp_path / "out.json")
    assert [row["id"] for row in json.loads((tmp_path / "out.json").read_text())] == [f"hidden/{i}" for i in range(8)]
    capsys.readouterr()
    call(PREDICT, "--model", trained, "--text", "a red cat")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_pipeline(trained: Path) -> None:
    model = vlkit.load(trained, device="cpu")
    one = model.labels([("a red cat", None), ("a much longer sentence about a blue cat", None)])
    assert one[0] == pytest.approx(model.labels([("a red cat", None)])[0], abs=1e-5)
    with pytest.raises(UserError, match="reads one text"):
        model.label("a", "b")
    with pytest.raises(UserError, match="blank"):
        model.label(" ")


@pytest.mark.parametrize(
    "words",
    [
        ("--adapter.kind", "lst", "--adapter.start", "fisher", "--adapter.fisher_examples", 2),
        ("--adapter.kind", "lora", "--adapter.checkpointing", "true"),
        ("--adapter.kind", "bitfit"),
        ("--adapter.kind", "full", "--precision", "bf16-true"),
        ("--adapter.kind", "unipt", "--head.kind", "classify"),
        ("--adapter.kind", "linear", "--head.kind", "classify"),
        ("--adapter.kind", "sherl", "--head.kind", "classify", "--precision", "bf16-mixed"),
    ],
)
def test_methods_and_heads(words: tuple, mood: Path, tmp_path: Path) -> None:
    call(TRAIN, "--data.root", mood, "--output", tmp_path, *QUICK, *words)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    label, probability = vlkit.load(tmp_path, device="cpu").label("a red cat")
    assert 0 <= probability <= 1 and (label in MOOD.labels or "classify" not in words)


@pytest.mark.parametrize("head", ["write", "classify"])
def test_regression(head: str, tmp_path: Path) -> None:
    root = written(tmp_path / "data", LIKE)
    call(TRAIN, "--data.root", root, "--output", tmp_path / "run", *QUICK, "--head.kind", head)
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"score", "pearson", "spearman", "invalid"} <= set(report["after"]) and report["before"]["score"] == 0
    call(PREDICT, "--model", tmp_path / "run", "--data.root", root, "--output", tmp_path / "out.tsv")
    assert all(0 <= float(line.split("\t")[1]) <= 5 for line in (tmp_path / "out.tsv").read_text().splitlines()[1:])


def test_what_is_no_label_is_wrong() -> None:
    records = [{"label": name} for name in ("good", "good", "bad", "bad")]
    found = score(MOOD, records, [1.0, None, 0.0, None])
    # The second and the last count as the opposite of what is true: 2 of 4 right, one true positive, F1 = 2 / 4.
    assert (found["accuracy"], found["f1"], found["score"], found["invalid"]) == (50, 50, 50, 50)
    three = TextTask("nli", ("a:", "b:"), "classification", ("x", "y", "z"), ("accuracy",))
    assert score(three, [{"label": "x"}, {"label": "z"}], [None, 2.0])["accuracy"] == 50
    rated = score(LIKE, [{"label": 1.0}, {"label": 2.0}, {"label": 5.0}], [1.0, 2.0, None])
    assert rated["pearson"] < 0  # -1 stands where 5 was asked for


def test_only_exact_strings_are_labels(trained: Path) -> None:
    read = vlkit.load(trained, device="cpu").labeller.read
    assert read("1", 0.5) == Label(1.0, "good", 0.5)
    assert read("1.", 0.5).value is None and read("2", 0.5).value is None and read("good", 0.5).value is None


@pytest.mark.parametrize("kind", TASKS)
def test_demo_pairs(kind: PairKind) -> None:
    found = []
    for index, scene in enumerate(sample_scenes(0, {"train": 400}, "plain")["train"]):
        found += pairs_of(scene, np.random.default_rng(index), kind)
    labels, changes = [r["label"] for r in found], {(r["label"], r["change"]) for r in found}
    assert all(labels.count(name) > 150 for name in TASKS[kind].labels)
    assert changes == {(label, change) for label, known in CHANGES[kind].items() for change in known}
    # Every label has pairs with the same words.
    same = {r["label"] for r in found if sorted(words(r["text"])) == sorted(words(r["text2"]))}
    assert same == set(TASKS[kind].labels)


def words(text: str) -> list[str]:
    """The words of a sentence without its opening."""
    for opening in filter(None, OPENINGS):
        text = text.removeprefix(opening)
    return text.replace("an ", "a ").split()


@pytest.mark.parametrize("kind", TASKS)
def test_words_alone_hardly_decide_demo_pairs(kind: PairKind) -> None:
    pytest.importorskip("sklearn")
    splits = {
        split: [
            record
            for index, scene in enumerate(scenes)
            for record in pairs_of(scene, np.random.default_rng(index), kind)
        ]
        for split, scenes in sample_scenes(0, {"train": 600, "val": 100, "test": 200}, "plain").items()
    }
    found = fit_bag_of_words(TASKS[kind], *splits.values())
    assert found.test["accuracy"] < 100 / len(TASKS[kind].labels) + 19


def test_demo_dataset_is_made_and_read(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path))
    from vlkit.tasks.text.data import text_dataset

    for demo in ("inference", "paraphrase"):
        dataset = text_dataset(None, demo, "small", "plain")
        assert task_of(dataset).word == demo and len(dataset.records("test")) > 100


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--adapter.kind", "unipt"), "--adapter.kind unipt: adapts no decoder; use --head.kind classify"),
        (("--text_base", "no/such"), "text base 'no/such'"),
        (("--data.train", "hidden"), 'field "label" is missing'),
        (("--data.test", "nope"), 'no split "nope"'),
        (("--head.source_tokens", 1), "--head.source_tokens 1"),
    ],
)
def test_wrong_flags_are_named(words: tuple, named: str, mood: Path, tmp_path: Path) -> None:
    assert named in refuse(TRAIN, "--data.root", mood, "--output", tmp_path / "run", *words)


def test_wrong_datasets_are_named(trained: Path, mood: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", LIKE)
    assert "task 'like'" in refuse(EVALUATE, "--model", trained, "--data.root", other)
    lines = (mood / "train.jsonl").read_text().splitlines()
    manifest = json.loads((mood / "dataset.json").read_text())
    broken = tmp_path / "broken"
    written(broken, MOOD)
    (broken / "train.jsonl").write_text("\n".join([lines[0], lines[1].replace('"good"', '"fine"'), *lines[2:]]) + "\n")
    line = refuse(TRAIN, "--data.root", broken, "--output", tmp_path / "run")
    assert "train.jsonl: record 2 (train/1): field \"label\" is 'fine'; the classes are bad, good" in line
    manifest["text"]["metrics"] = ["bleu"]
    (broken / "dataset.json").write_text(json.dumps(manifest))
    assert '"metrics" are not some of accuracy' in refuse(TRAIN, "--data.root", broken, "--output", tmp_path / "run")
    with pytest.raises(UserError, match=r'field "task" is "text", expected "vqa"'):
        Dataset.open(mood, "vqa")


@pytest.mark.parametrize("kind", ["sherl", "unipt", "lst", "dtl", "linear", "bitfit", "full"])
def test_classifier_on_bert(kind: str) -> None:
    base = text_base(tiny.tiny_bert(), "bert", SimpleNamespace(sep_token="[SEP]"), {"library": "test", "name": "bert"})
    task = TextTask("nli", ("a:", "b:"), "classification", ("x", "y", "z"), ("accuracy",))
    assert reading_of(task, base, writes=False)({"text": "one", "text2": "two"}) == "one [SEP] two"
    model = build_model(base, task, ADAPTERS[kind](), ClassifyOptions(dropout=0.0)).train()
    logits = model(tiny.padded_ids((5, 9)))
    assert logits.shape == (2, 3)
    label_loss(logits, torch.tensor([0, 2])).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("head"))
    with pytest.raises(UserError, match=r"has no decoder; give a T5, or --head.kind classify"):
        build_model(base, task, ADAPTERS[kind](), WriteOptions())


def test_predicted_stacks_share_their_token_table() -> None:
    sizes = []
    for predicts in (True, False):
        bench = T5Bench("tiny", predicts=predicts, source_tokens=8)
        model = bench.model(ADAPTERS["sherl"]())
        sizes.append(bench.memory(model, 2).parameter_bytes)
    assert sizes[0] == sizes[1]
