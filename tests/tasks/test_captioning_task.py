"""Task captioning: every command on a small dataset, methods, the baseline, own folders, wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlkit
from helpers.scripts import ROOT, call, refuse
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.load import load_base
from vlkit.errors import UserError
from vlkit.tasks.captioning.baseline import consensus, nearest_metrics

TRAIN, EVALUATE, PREDICT = (f"tasks/captioning/{name}.py" for name in ("train", "evaluate", "predict"))
QUICK = ("--epochs", 1, "--batch_size", 2, "--device", "cpu", "--head.max_tokens", 10, "--head.beams", 2)
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captions")
    splits = {}
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        splits[split] = []
        for i in range(count):
            colour = list(COLOURS)[i % 2]
            Image.new("RGB", (96, 96), COLOURS[colour]).save(root / f"{split}{i}.png")
            texts = [f"a {colour} square", f"a picture of a {colour} square"]
            splits[split].append({"id": f"own/{i}", "image": f"{split}{i}.png", "texts": texts})
    write_dataset(root, name="made", task="retrieval", splits=splits, media_root=root, source="test")
    return root


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK)
    return folder


@pytest.mark.slow
def test_an_index_holds_captions_that_a_search_shows(trained: Path, dataset: Path, tmp_path: Path, capsys) -> None:
    idx, hits = tmp_path / "idx", tmp_path / "hits.json"
    index = ("tasks/retrieval/index.py", "--base", "tiny", "--images", dataset, "--index", idx)
    call(*index, "--captions", trained)
    assert "; 9 captions added" in capsys.readouterr().out
    call(*index, "--captions", trained)
    assert "9 unchanged" in (said := capsys.readouterr().out) and "; 0 captions added" in said
    call(*index)  # keeps them
    capsys.readouterr()
    call("tasks/retrieval/search.py", "--index", idx, "--text", "a square", "--k", 3, "--json", hits)
    said = capsys.readouterr().out
    model = vlkit.load(trained, device="cpu")
    for hit in json.loads(hits.read_text())["results"]:
        assert hit["caption"] == model.caption(hit["image"]) and hit["caption"] in said
    assert "task 'captioning' is needed" in refuse(*index, "--captions", ROOT / "vlkit/assets/adapters/retrieval")


@pytest.mark.slow
def test_captions_of_the_nearest_images_are_a_control(dataset: Path, tmp_path: Path, capsys) -> None:
    flags = ("--flags", f"data.root={dataset}", "base=tiny", "epochs=1")
    call("tasks/compare.py", "--task", "captioning", "--kinds", "nearest", "--seeds", 1, *flags, "--output", tmp_path)
    report = json.loads((tmp_path / "nearest-seed0" / "metrics.json").read_text())
    name, expected = nearest_metrics(load_base("tiny"), Dataset.open(dataset), "train", "test", torch.device("cpu"))
    assert report["after"] == pytest.approx(expected) and report["adapter"]["captions_of"] == name
    assert f"| nearest | {expected['cider']:.1f} |" in capsys.readouterr().out


def test_train_evaluate_predict(trained: Path, dataset: Path, tmp_path: Path, capsys) -> None:
    report = json.loads((trained / "metrics.json").read_text())
    assert report["task"] == "captioning" and {"cider", "bleu4", "rouge_l"} <= set(report["after"])
    assert "nearest" in report["before_is"] and report["before"]["rouge_l"] > 90
    call(EVALUATE, "--model", trained, "--data.root", dataset, "--json", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["cider"] == pytest.approx(report["after"]["cider"], abs=1e-6)
    call(PREDICT, "--model", trained, "--data.root", dataset, "--output", tmp_path / "c.json")
    rows = json.loads((tmp_path / "c.json").read_text())
    assert [row["image_id"] for row in rows] == [0, 1, 2] and all(isinstance(row["caption"], str) for row in rows)
    capsys.readouterr()
    call(PREDICT, "--model", trained, "--image", dataset / "test0.png", "--k", 3)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_pipeline(trained: Path, dataset: Path) -> None:
    model = vlkit.load(trained, device="cpu")
    caption = model.caption(dataset / "test0.png")
    assert isinstance(caption, str) and caption == model.caption(Image.open(dataset / "test0.png"))
    assert model.caption_all([dataset / "test0.png", dataset / "test1.png"])[0] == caption
    assert len(model.captions(dataset / "test0.png", 4)) == 4
    with pytest.raises(UserError, match="at least 1"):
        model.captions(dataset / "test0.png", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--adapter.kind", "lst", "--adapter.start", "fisher", "--adapter.fisher_examples", 2, "--data.per_image", 1),
        ("--adapter.kind", "full", "--head.cells", 3, "--precision", "bf16-true"),
        ("--adapter.kind", "lora", "--head.blind", "true", "--data.augment", "crop"),
    ],
)
def test_methods_and_options(words: tuple, dataset: Path, tmp_path: Path) -> None:
    call(TRAIN, "--data.root", dataset, "--output", tmp_path, *QUICK, *words)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    model = vlkit.load(tmp_path, device="cpu")
    one, other = (model.captions(dataset / f"test{i}.png", 2) for i in (0, 1))
    assert ("--head.blind" in words) == (one == other)


def test_folder_of_images_goes_on_after_an_interruption(trained: Path, dataset: Path, tmp_path: Path, capsys) -> None:
    folder, output = tmp_path / "images", tmp_path / "captions.jsonl"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "sub/b.png", "c.png")):
        Image.new("RGB", (40, 30), list(COLOURS.values())[i % 2]).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    words = ("--model", trained, "--images", folder, "--output", output)
    call(PREDICT, *words)
    said = capsys.readouterr()
    assert "3 captions written, 0 kept, 1 images unreadable" in said.out and "broken.jpg" in said.err
    refused = refuse(PREDICT, *words[:-1], tmp_path / "captions.json")
    assert "a folder is written as a line per image; name it captions.jsonl" in refused
    lines = output.read_text().splitlines()
    assert {json.loads(line)["image"] for line in lines} == {"a.png", "sub/b.png", "c.png"}
    output.write_text(lines[0] + "\n" + lines[1][:9])  # killed in the middle of a line
    call(PREDICT, *words)
    assert "2 captions written, 1 kept" in capsys.readouterr().out
    assert sorted(output.read_text().splitlines()) == sorted(lines)
    call(
        "data_prep/from_folder.py", "--folder", folder, "--captions", output, "--output", tmp_path / "own", "--partial"
    )
    assert Dataset.open(tmp_path / "own", "retrieval").splits
    output.write_text('["x"]\n')
    assert "captions.jsonl:1: not a line of captions" in refuse(PREDICT, *words)


def test_baseline_takes_the_captions_of_the_nearest_image(dataset: Path) -> None:
    opened = Dataset.open(dataset, "retrieval")
    name, metrics = nearest_metrics(load_base("tiny"), opened, "train", "test", torch.device("cpu"))
    assert "nearest" in name and metrics["bleu1"] > 90
    assert consensus(["a dog", "a red dog", "a red dog sits"]) == "a red dog"


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        (TRAIN, ("--text_base", "clip"), "--text_base clip: has no decoder"),
        (TRAIN, ("--adapter.kind", "linear"), "use sherl, lst, bitfit, lora, peft or full"),
        (TRAIN, ("--head.beams", 0), "--head.beams 0"),
        (TRAIN, ("--head.prompt", " "), "--head.prompt"),
        (TRAIN, ("--data.validation", "nope"), 'no split "nope"'),
        (PREDICT, ("--model", "x", "--image", "a.png", "--images", "b"), "give one of the two"),
    ],
)
def test_wrong_input_is_named(script: str, words: tuple, named: str, dataset: Path, tmp_path: Path) -> None:
    more = ("--output", tmp_path / "run") if script == TRAIN else ()
    assert named in refuse(script, "--data.root", dataset, *more, *words)


def test_missing_image_is_named(trained: Path, dataset: Path) -> None:
    line = refuse(PREDICT, "--model", trained, "--image", dataset / "nothing.png")
    assert "nothing.png: missing" in line


def test_training_may_start_without_measuring_before(dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, "--before", "false")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"] == {} and "before_is" not in metrics and metrics["after"]["cider"] >= 0
