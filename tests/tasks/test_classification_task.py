"""Classification, from labelled images to classes: heads, scripts, pipeline, wrong input."""

from __future__ import annotations

import csv
import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import vlkit
from helpers import tiny
from helpers.scripts import call, load_script, refuse
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.bases import Preprocess, clip_base, pair_base
from vlkit.encoders.load import load_base
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.tasks.classification.closed_form import search_cache, solve_ridge
from vlkit.tasks.classification.heads import CLASSIFIERS, CacheHead, CacheOptions, LinearHead, PromptHead, unit
from vlkit.tasks.classification.losses import Loss, balanced_weights, class_loss
from vlkit.tasks.classification.model import build_model
from vlkit.tasks.classification.pipeline import load_zero_shot
from vlkit.tasks.classification.prompts import PromptOptions, Prompts, class_weights, default_templates, prompts_of

TRAIN, EVALUATE, PREDICT = (f"tasks/classification/{name}.py" for name in ("train", "evaluate", "predict"))
SHAPES = ("circle", "red_cross", "square")
COUNTS = {"train": 4, "val": 2, "test": 3}
QUICK = ("--epochs", 2, "--batch_size", 6, "--lr", 1e-3, "--device", "cpu")


def drawn(shape: str, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    pen, (x, y), size = ImageDraw.Draw(image), rng.integers(4, 24, 2), int(rng.integers(20, 34))
    box = [int(x), int(y), int(x) + size, int(y) + size]
    if shape == "circle":
        pen.ellipse(box, fill="blue")
    elif shape == "square":
        pen.rectangle(box, fill="green")
    else:
        pen.line(box, fill="red", width=8)
        pen.line([box[0], box[3], box[2], box[1]], fill="red", width=8)
    return image


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Three shapes, and a class without any image."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    splits: dict[str, list[dict]] = {}
    for split, count in COUNTS.items():
        for shape in SHAPES:
            for i in range(count):
                name = f"{split}-{shape}-{i}.png"
                drawn(shape, rng).save(root / name)
                splits.setdefault(split, []).append({"id": name, "image": name, "label": shape})
    extra = {"classes": [*SHAPES, "whale"], "templates": ["a {}", "a drawing of a {}"]}
    where = {"name": "shapes", "task": "classification", "media_root": root, "source": "made for a test"}
    write_dataset(root, splits=splits, extra=extra, **where)
    return root


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK)
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


# --- heads ------------------------------------------------------------------------------------------------------------


def random_features(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("penalty", [0.03, 5.0])
def test_ridge_is_the_minimum_and_leaves_each_image_out(penalty):
    f, labels = random_features(9), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1])
    found = solve_ridge(f, labels, 4, penalty)

    def solved(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The normal equations with a bias that is not penalised."""
        x = torch.cat([unit(f[rows]), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        weight = torch.diag(torch.tensor([penalty] * 6 + [0.0], dtype=torch.float64))
        both = torch.linalg.solve(x.T @ x + weight, x.T @ F.one_hot(labels[rows], 4).double())
        return both[:-1].T, both[-1]

    weight, bias = solved(torch.arange(9))
    torch.testing.assert_close(found.weight, weight, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.bias, bias, atol=1e-9, rtol=1e-9)
    for i in range(9):
        weight, bias = solved(torch.tensor([j for j in range(9) if j != i]))
        torch.testing.assert_close(found.left_out[i], unit(f[i]) @ weight.T + bias, atol=1e-9, rtol=1e-9)


def test_ridge_with_more_widths_than_images_and_with_one_image():
    found = solve_ridge(random_features(4, 50), torch.tensor([0, 0, 1, 1]), 2)
    scores = unit(random_features(4, 50)) @ found.weight.T + found.bias
    assert (scores.argmax(1) == torch.tensor([0, 0, 1, 1])).all() and math.isfinite(found.log_scale)
    alone = solve_ridge(random_features(1), torch.tensor([1]), 3)
    assert alone.bias.tolist() == [0, 1, 0] and torch.isfinite(alone.weight).all()


def cache_head(f: torch.Tensor, owners: torch.Tensor, classes: int, alpha: float, beta: float) -> CacheHead:
    head = CacheHead(unit(random_features(classes, seed=5)), math.log(20), len(f), alpha, beta).double()
    head.fill(f, owners)
    return head


def test_tip_adapter_is_the_published_formula():
    keys, owners, f = random_features(8), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1]), random_features(5, seed=1)
    head = cache_head(keys, owners, 3, 1.3, 4.0)
    values = F.one_hot(owners, 3).double()
    affinity = unit(f) @ unit(keys).T
    expected = 20 * unit(f) @ head.weights.T + ((-1) * (4.0 - 4.0 * affinity)).exp() @ values * 1.3
    torch.testing.assert_close(head(f), expected.float(), atol=1e-5, rtol=1e-5)


def test_the_search_of_tip_adapter_takes_the_first_best_of_the_grid():
    keys, owners = random_features(8), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    f, labels = random_features(12, seed=3), torch.tensor([0, 1, 2] * 4)
    head = cache_head(keys, owners, 3, 1.0, 5.5)
    alpha, beta = search_cache(head, CacheOptions(), f, labels)
    best, first = -1, (0.0, 0.0)
    for i in range(200):
        for j in range(20):
            b, a = 0.1 + i * 6.9 / 200, 0.1 + j * 2.9 / 20
            scores = (
                20 * unit(f) @ head.weights.T + a * (b * (unit(f) @ head.keys.T - 1)).exp() @ F.one_hot(owners).double()
            )
            right = int((scores.argmax(1) == labels).sum())
            if right > best:
                best, first = right, (a, b)
    assert (alpha, beta) == pytest.approx(first) and float(head.alpha) == pytest.approx(alpha)
    assert search_cache(head, CacheOptions(alpha=2.0, beta=3.0), f, labels) == (2.0, 3.0)


def test_scores_do_not_depend_on_the_norm_of_a_feature():
    f = random_features(4).float()
    heads = [PromptHead(random_features(3, seed=5).float(), 1.0, True), LinearHead(6, 3)]
    torch.nn.init.normal_(heads[1].layer.weight)
    for head in heads:
        torch.testing.assert_close(head(f), head(7 * f))
    limited = PromptHead(torch.eye(3), 100.0, False)(torch.eye(3)).detach()
    assert float(limited.max()) == pytest.approx(100)


def test_balanced_classes_weigh_the_same():
    labels = torch.tensor([0, 0, 0, 1])
    weights = balanced_weights(labels, 3)
    assert weights.tolist() == pytest.approx([2 / 3, 2, 0])
    scores = random_features(4, 3).float()
    each = F.cross_entropy(scores, labels, reduction="none")
    expected = (each[:3].mean() + each[3]) / 2
    assert class_loss(scores, labels, Loss(balance=True), weights) == pytest.approx(float(expected))


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_class_vectors_are_means_of_the_prompts():
    base = load_base("tiny")
    found = class_weights(
        base, Prompts(["red_cross", "ball"], ["a {}", "the {}."], {"ball": ["a round ball"]}), make_fabric("cpu")
    )
    texts = [["a red cross", "the red cross."], ["a round ball"]]
    with torch.no_grad():
        expected = [unit(base.text.model(base.tokenize(own))).mean(0) for own in texts]
    torch.testing.assert_close(found, unit(torch.stack(expected)), atol=1e-5, rtol=1e-5)


def test_where_templates_come_from(dataset, tmp_path):
    data = Dataset.open(dataset)
    assert prompts_of(data, PromptOptions()).texts("red_cross") == ["a red cross", "a drawing of a red cross"]
    assert prompts_of(data, PromptOptions(["{}!"])).texts("square") == ["square!"]
    (tmp_path / "t.txt").write_text("one {}\n\n two {}. \n")
    assert prompts_of(data, PromptOptions(file=tmp_path / "t.txt")).templates == ["one {}", "two {}."]
    (tmp_path / "t.json").write_text('{"square": ["four sides"]}')
    own = prompts_of(data, PromptOptions(file=tmp_path / "t.json"))
    assert own.texts("square") == ["four sides"] and own.texts("circle")[0] == "a circle"
    assert default_templates("OxfordPets") == ("a photo of a {}, a type of pet.",) and len(default_templates("x")) == 4
    for content, says in (
        ('{"cow": ["x"]}', '"cow" is no class'),
        ('{"square": []}', 'texts of "square"'),
        ("[]", "JSON"),
    ):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(UserError, match=says):
            prompts_of(data, PromptOptions(file=tmp_path / "t.json"))


def test_a_pair_of_encoders_has_no_class_prompts():
    clip = tiny.tiny_clip()
    preprocess = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)
    staged = clip_base(clip, "c", lambda texts: torch.zeros(len(texts), 8, dtype=torch.int64), preprocess, {})
    base = pair_base("a+b", staged.image, staged.text, staged.tokenize, preprocess, {}, {})
    module = load_script(TRAIN)
    for kind, options in CLASSIFIERS.items():
        if options.reads_prompts:
            with pytest.raises(UserError, match="linear or ridge"):
                build_model(base, module.LinearOptions(), options(), 3)
        else:
            assert build_model(base, module.LinearOptions(), options(), 3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3), (
                kind
            )


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_contract_names(trained, dataset):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.yaml",
        "log.jsonl",
        "curves.png",
        "metrics.json",
        "README.md",
        "confusion.png",
        "confusion.csv",
    }
    metrics = metrics_of(trained)
    assert metrics["task"] == "classification" and metrics["saved_activation_bytes"] > 0
    assert set(metrics["after"]) == set(metrics["before"]) == {"top1", "top5", "mean_per_class", "ece"}
    assert metrics["before_is"] == "zero-shot" and metrics["split"] == "test"
    rows = list(csv.reader((trained / "confusion.csv").read_text().splitlines()))
    counts = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0][1:] == [*SHAPES, "whale"] and counts.sum() == 9
    assert 100 * np.trace(counts) / 9 == pytest.approx(metrics["after"]["top1"])


def test_evaluate_predict_and_the_pipeline_agree(trained, dataset, tmp_path, capsys):
    call(
        EVALUATE,
        "--model",
        trained,
        "--data.root",
        dataset,
        "--json",
        tmp_path / "m.json",
        "--confusion",
        tmp_path / "c.png",
    )
    found, after = json.loads((tmp_path / "m.json").read_text()), metrics_of(trained)["after"]
    assert {key: found[key] for key in after} == pytest.approx(after)
    assert "classes without an image in this split" in capsys.readouterr().out and (tmp_path / "c.csv").exists()

    split = ("--data.root", dataset, "--split", "test")
    call(PREDICT, "--model", trained, *split, "--output", tmp_path / "p.json")
    rows = json.loads((tmp_path / "p.json").read_text())
    assert 100 * np.mean([row["class"] == row["label"] for row in rows]) == pytest.approx(after["top1"])
    model = vlkit.load(trained, device="cpu")
    for row in rows[:2]:
        answer = model.classify(dataset / row["image"])
        assert answer == sorted(answer, key=lambda pair: -pair[1]) and len(answer) == 4
        assert sum(p for _, p in answer) == pytest.approx(1) and dict(answer) == pytest.approx(row["scores"], abs=1e-5)
    call(PREDICT, "--model", trained, "--images", dataset, "--output", tmp_path / "p.csv", "--k", 2)
    table = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(table) == 27 and list(table[0])[3:] == [f"p({name})" for name in (*SHAPES, "whale")]
    assert sum(bool(table[0][f"p({name})"]) for name in (*SHAPES, "whale")) == 2


def test_other_class_names_and_many_callers(trained, dataset):
    model = vlkit.load(trained, device="cpu")
    image = dataset / "test-circle-0.png"
    answer = model.classify(image, classes=["a ball ", "cat"], k=1)
    assert len(answer) == 1 and answer[0][0] in ("a ball", "cat") and 0.5 <= answer[0][1] <= 1
    with ThreadPoolExecutor(4) as pool:
        assert all(
            dict(one) == pytest.approx(dict(model.classify(image)), abs=1e-5)
            for one in pool.map(model.classify, [image] * 8)
        )
    for classes, says in (([], "at least one"), (["a", " "], "blank"), (["a", "b", "a "], "a given twice")):
        with pytest.raises(UserError, match=says):
            model.classify(image, classes=classes)
    with pytest.raises(UserError, match="k=0"):
        model.classify(image, k=0)


def test_a_base_alone_classifies_any_names(dataset):
    model = load_zero_shot("tiny", ["circle", "house"], "cpu")
    assert {name for name, _ in model.classify(dataset / "test-circle-0.png")} == {"circle", "house"}


def test_it_resumes_exactly(trained, dataset, tmp_path, monkeypatch):
    from vlkit.engine.training import Training

    stop_at = 2
    saved = Training.log_step

    def log_step(self, numbers):
        saved(self, numbers)
        if self.state.step == stop_at:
            self.asked_to_stop = True

    words = ("--data.root", dataset, "--output", tmp_path / "run", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "log_step", log_step)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(TRAIN, *words)
    call(TRAIN, *words, "--resume")
    one, two = (load_file(folder / "vlkit_adapter.safetensors") for folder in (trained, tmp_path / "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


HEADS = {
    "zeroshot": ("--head.kind", "zeroshot", "--adapter.kind", "linear"),
    "zeroshot with an adapter": ("--head.kind", "zeroshot", "--adapter.kind", "bitfit"),
    "linear": ("--head.kind", "linear", "--loss.balance", "--data.augment", "flip", "--data.draft"),
    "cache": ("--head.kind", "cache", "--head.views", 2),
    "cache, trained": ("--head.kind", "cache", "--head.finetune", "--adapter.kind", "linear"),
    "ridge": ("--head.kind", "ridge"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_head_trains_saves_and_loads(name, dataset, tmp_path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *HEADS[name], "--data.shots", 2)
    metrics = metrics_of(tmp_path / "run")
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in steps) == (name not in ("zeroshot", "cache", "ridge"))
    call(
        EVALUATE, "--model", tmp_path / "run", "--data.root", dataset, "--json", tmp_path / "m.json", "--device", "cpu"
    )
    found = json.loads((tmp_path / "m.json").read_text())
    assert {key: found[key] for key in metrics["after"]} == pytest.approx(metrics["after"], abs=1e-4)
    if name == "zeroshot":
        assert metrics["after"] == pytest.approx(metrics["before"]) and metrics["trainable_parameters"] == 0
    if name == "ridge":
        assert metrics["after"]["top1"] > 60 and metrics["saved_activation_bytes"] == 0


def test_training_from_the_tap_cache_gives_the_same_model(trained, dataset, tmp_path):
    words = ("--cache", tmp_path / "taps", "--cache_dtype", "fp32", *QUICK)
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *words)
    one, two = (load_file(folder / "vlkit_adapter.safetensors") for folder in (trained, tmp_path / "run"))
    assert all(torch.allclose(one[key].float(), two[key].float(), atol=1e-4) for key in one)


def test_single_images_and_absent_classes_are_said(dataset, tmp_path, caplog):
    data = Dataset.open(dataset)
    train = [r for r in data.records("train") if r["label"] != "circle"][:5]
    where = {"name": "few", "task": "classification", "media_root": dataset, "source": "a test", "extra": data.extra}
    write_dataset(tmp_path / "few", splits={"train": train, "test": data.records("test")}, **where)
    with caplog.at_level(logging.INFO):
        call(TRAIN, "--data.root", tmp_path / "few", "--output", tmp_path / "run", "--head.kind", "ridge")
    assert (
        "classes without a training image (1 of them tested): circle, whale; this head cannot learn them" in caplog.text
    )
    assert "classes with a single training image: square" in caplog.text and "1 to 4 per class" in caplog.text
    call(TRAIN, "--data.root", tmp_path / "few", "--output", tmp_path / "text", *QUICK)  # no validation split
    assert metrics_of(tmp_path / "text")["after"]["top1"] >= 0


def test_validation_can_be_left_out_and_an_overlap_is_said(dataset, tmp_path, caplog):
    words = ("--data.root", dataset, "--output", tmp_path / "run", "--head.kind", "ridge")
    call(TRAIN, *words, "--data.validation", "none")
    assert metrics_of(tmp_path / "run")["split"] == "test"
    assert "top1" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert 'no split "tst"' in refuse(TRAIN, *words, "--resume", "--data.validation", "none", "--data.test", "tst")
    call(TRAIN, *words[:3], tmp_path / "two", *words[4:], "--data.validation", "train")
    assert "validation images that are also training images: 12" in caplog.text


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--head.kind", "ridge", "--adapter.kind", "lora"), "so --adapter.kind lora would stay untrained"),
        (("--head.kind", "cache", "--adapter.kind", "vqt"), "would stay untrained"),
        (("--prompts.templates", "a photo"), "has no {}"),
        (("--data.shots", -1), "shots -1: must be at least 0"),
        (("--head.kind", "ridge", "--head.penalty", 0), "--head.penalty 0"),
        (("--head.kind", "cache", "--head.beta", -1), "--head.beta -1"),
        (("--loss.smoothing", 1), "--loss.smoothing 1"),
        (("--data.train", "tests"), 'no split "tests"; there are: train, val, test'),
        (("--data.augment", "crop", "--cache"), "each image is different"),
        (("--head.kind", "ridge", "--init", "runs/x"), "--init runs/x: a head ridge is solved, not trained"),
    ],
)
def test_wrong_flags_of_training(dataset, tmp_path, words, says):
    assert says in refuse(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *words)


def test_wrong_flags_of_the_other_scripts(trained, dataset, tmp_path):
    assert "give either --model" in refuse(EVALUATE, "--data.root", dataset)
    assert "an adapter has its own class prompts" in refuse(EVALUATE, "--model", trained, "--prompts.templates", "{}")
    assert "give either --images" in refuse(PREDICT, "--model", trained)
    assert "no such file or folder" in refuse(PREDICT, "--model", trained, "--images", "nothing.png")
    assert "must end with .json or .csv" in refuse(PREDICT, "--model", trained, "--split", "test", "--output", "a.txt")
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert "none of 1 images can be read" in refuse(PREDICT, "--model", trained, "--images", tmp_path / "bad.png")
    data = Dataset.open(dataset)
    where = {"name": "x", "task": "classification", "media_root": dataset, "source": "a test"}
    extra = {"classes": [*SHAPES, "cow"]}
    write_dataset(tmp_path / "x", splits={"test": data.records("test")}, extra=extra, **where)
    assert "(cow are in only one of them)" in refuse(EVALUATE, "--model", trained, "--data.root", tmp_path / "x")


def test_a_damaged_head_is_named(trained, dataset, tmp_path):
    for name in ("vlkit_adapter.json", "vlkit_adapter.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    config = json.loads((tmp_path / "vlkit_adapter.json").read_text())
    for change in (
        {"kind": "magic"},
        {"classes": None},
        {"classes": ["a"]},
        {"count": "x", "kind": "cache"},
        {"texts": []},
    ):
        (tmp_path / "vlkit_adapter.json").write_text(json.dumps({**config, "head": {**config["head"], **change}}))
        with pytest.raises(UserError):
            vlkit.load(tmp_path, device="cpu")


def test_other_data_is_measured_without_and_with_the_adapter(trained: Path, dataset: Path, tmp_path: Path) -> None:
    """Also with other classes, which are told apart by their prompts."""
    root = tmp_path / "renamed"
    names = {shape: f"big {shape}" for shape in SHAPES}
    splits = {
        split: [{**record, "label": names[record["label"]]} for record in Dataset.open(dataset).records(split)]
        for split in COUNTS
    }
    extra = {"classes": list(names.values()), "templates": ["a {}"]}
    where = {"name": "renamed", "task": "classification", "media_root": dataset, "source": "made for a test"}
    write_dataset(root, splits=splits, extra=extra, **where)
    options = ("--model", trained, "--data.root", dataset, "--json", tmp_path / "m.json", "--device", "cpu")
    call(EVALUATE, *options, "--also", dataset, root)
    found = json.loads((tmp_path / "m.json").read_text())
    own, other = found["also"]["shapes"], found["also"]["renamed"]
    assert own["after"]["top1"] == pytest.approx(found["top1"])
    assert {"top1", "mean_per_class"} <= set(other["before"]) == set(other["after"])
    call(EVALUATE, *options, "--mix", 0)
    assert json.loads((tmp_path / "m.json").read_text())["top1"] == pytest.approx(own["before"]["top1"])
    assert "--mix: a base alone" in refuse(EVALUATE, "--base", "tiny", "--data.root", dataset, "--mix", 0.5)


def test_training_may_start_without_measuring_before(dataset, tmp_path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, "--before", "false")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"] == {} and "before_is" not in metrics and metrics["after"]["top1"] >= 0
