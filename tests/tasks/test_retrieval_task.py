"""The retrieval scripts, from a prepared dataset to search results, on the embedded base."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vlkit
from helpers.drawn_pairs import draw_pairs
from helpers.scripts import ROOT, call, command, refuse
from vlkit.adapters import ADAPTERS
from vlkit.engine import choose_mix
from vlkit.errors import UserError
from vlkit.tasks.two_tower import HeadOptions

TRAIN, EVALUATE = "tasks/retrieval/train.py", "tasks/retrieval/evaluate.py"
INDEX, SEARCH = "tasks/retrieval/index.py", "tasks/retrieval/search.py"
SPLITS = {"train": 16, "val": 6, "test": 8}
QUICK = ("--epochs", 2, "--batch_size", 8, "--device", "cpu", "--data.every_caption", "false")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A prepared dataset of drawn scenes: 16 + 6 + 8 images with three captions each."""
    return draw_pairs(tmp_path_factory.mktemp("drawn"), SPLITS)


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory) -> Path:
    """A finished SHERL run on it."""
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK)
    return folder


def test_run_folder_holds_what_the_contract_names(trained: Path):
    for name in (
        "config.yaml",
        "log.jsonl",
        "curves.png",
        "vlkit_adapter.json",
        "vlkit_adapter.safetensors",
        "README.md",
    ):
        assert (trained / name).stat().st_size > 0, name
    assert (trained / "checkpoint").is_dir()
    metrics = json.loads((trained / "metrics.json").read_text())
    assert set(metrics) >= {
        *("task", "base", "adapter", "split", "before", "after", "trainable_parameters", "total_parameters"),
        *("saved_activation_bytes", "peak_memory_bytes", "train_seconds", "examples_per_second", "seed", "versions"),
    }
    assert (metrics["task"], metrics["split"]) == ("retrieval", "test")
    keys = {f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum", "i2t_median_rank"}
    assert keys <= set(metrics["before"]) and keys <= set(metrics["after"])
    assert 0 < metrics["trainable_parameters"] < metrics["total_parameters"]
    assert metrics["saved_activation_bytes"] > 0
    assert metrics["step_time_over_forward"] > 0
    config = json.loads((trained / "vlkit_adapter.json").read_text())
    assert config["format"] == "vlkit-adapter"
    assert {"task", "base", "adapters", "head", "preprocess", "metrics", "format_version"} <= set(config)


def test_saved_adapter_measures_as_it_did_in_training(trained: Path, dataset: Path, tmp_path: Path):
    call(EVALUATE, "--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "m.json")
    again = json.loads((tmp_path / "m.json").read_text())
    after = json.loads((trained / "metrics.json").read_text())["after"]
    assert {key: again[key] for key in after} == pytest.approx(after)


def test_a_run_begins_with_another_adapter(trained: Path, dataset: Path, tmp_path: Path):
    again = tmp_path / "again"
    call(TRAIN, "--data.root", dataset, "--output", again, *QUICK, "--init", trained, "--lr", 0, "--data.train", "val")
    first, second = (load_file(folder / "vlkit_adapter.safetensors") for folder in (trained, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_threshold_of_search_is_calibrated_on_the_validation_split(trained, dataset, tmp_path, capsys):
    found = json.loads((trained / "vlkit_adapter.json").read_text())["search"]
    assert (found["data"], found["split"], found["images"]) == ("drawn", "val", 6)
    pipeline = vlkit.load(trained, device="cpu")
    texts = ["a red house", "a blue fish"]
    assert np.array_equal(pipeline.embed_texts(text for text in texts), pipeline.embed_texts(texts))
    with pytest.raises(UserError, match=r"texts: one str in place of a list"):  # not its letters
        pipeline.embed_texts("a dog")
    with pytest.raises(UserError, match=r"images: one str in place of a list"):
        pipeline.embed_images("dog.png")
    with pytest.raises(UserError, match=r"--head.dim -3"):
        HeadOptions(dim=-3)
    assert pipeline.min_score == found["min_score"]
    assert vlkit.load(trained, device="cpu", mix=0.5).min_score is None
    records = [json.loads(line) for line in (dataset / "val.jsonl").read_text().splitlines()]
    images = pipeline.embed_images([dataset / record["image"] for record in records])
    scores = pipeline.embed_texts([text for record in records for text in record["texts"]]) @ images.T
    own = np.repeat(np.eye(6, dtype=bool), 3, axis=0)
    above = scores >= found["min_score"]
    assert found["recall"] == pytest.approx(100 * above[own].mean(), abs=1)
    assert found["precision"] == pytest.approx(100 * own[above].mean(), abs=1)
    # A base alone has none until the index is calibrated: with the same data, by the same measure.
    call(INDEX, "--base", "tiny", "--images", dataset, "--index", tmp_path / "i", "--calibrate", dataset)
    assert "best F1" in capsys.readouterr().out
    call(SEARCH, "--index", tmp_path / "i", "--text", "a house", "--min_score", "auto", "--json", tmp_path / "h.json")
    least = json.loads((tmp_path / "h.json").read_text())["min_score"]
    assert least == json.loads((tmp_path / "i" / "source.json").read_text())["min_score"] > 0


def test_folds_and_index_are_reported(trained: Path, dataset: Path, tmp_path: Path):
    options = ("--folds", 2, "--index", "Flat", "--json", tmp_path / "m.json")
    call(EVALUATE, "--model", trained, "--data.root", dataset, *options)
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["fold_rsum"] >= metrics["rsum"]  # half as many candidates
    for direction in ("i2t", "t2i"):
        assert metrics[f"index_{direction}_r5"] == pytest.approx(metrics[f"{direction}_r5"])
    with pytest.raises(UserError, match="--folds 3"):
        call(EVALUATE, "--model", trained, "--data.root", dataset, "--folds", 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ADAPTERS))
def test_every_kind_trains_saves_and_loads(kind: str, dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", "--adapter.kind", kind, *QUICK)
    tensors = load_file(tmp_path / "run" / "vlkit_adapter.safetensors")
    base_tensors = [name for name in tensors if ".base." in name and "lora_" not in name]
    assert bool(base_tensors) == (kind in ("full", "bitfit", "s2a"))
    pipeline = vlkit.load(tmp_path / "run", device="cpu")
    texts = pipeline.embed_texts(["a red house", "a blue fish"])
    images = pipeline.embed_images([dataset / "test0.png", Image.open(dataset / "test1.png")])
    assert texts.shape == images.shape == (2, pipeline.dim) and texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([texts, images]), axis=1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--adapter.handoff", "pooled"),
        ("--adapter.late", 2, "--adapter.flavour", "gated", "--adapter.init", "published"),
        ("--head.pool", "gpo", "--loss.kind", "triplet"),
        ("--loss.kind", "siglip", "--loss.chunk", 3),
        ("--accumulate", 2, "--data.augment", "flip", "--head.projection", "false"),
        ("--precision", "bf16-true"),
    ],
)
def test_options_run(options: tuple, dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert vlkit.load(tmp_path / "run", device="cpu").embed_texts(["a star"]).shape[0] == 1


def test_adapter_refuses_another_base(trained: Path, tmp_path: Path):
    folder = tmp_path / "changed"
    folder.mkdir()
    config = json.loads((trained / "vlkit_adapter.json").read_text())
    config["base"]["image"]["fingerprint"] = "0" * 32
    (folder / "vlkit_adapter.json").write_text(json.dumps(config))
    (folder / "vlkit_adapter.safetensors").write_bytes((trained / "vlkit_adapter.safetensors").read_bytes())
    with pytest.raises(UserError, match="fingerprint"):
        vlkit.load(folder)


def test_the_part_of_the_adapter_is_chosen_on_the_validation_split(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choose_mix, "ALPHAS", (0.0,))  # the base, which is better than two steps at this rate
    words = ("--choose_mix", "true", "--lr", 1.0, "--warmup", 0)
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *words)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    trained, base = (line["rsum"] for line in lines if line.get("split") == "val" and line["step"] == lines[-1]["step"])
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found.get("mix", 1.0) == (0.0 if base > trained else 1.0)
    kept, none = (vlkit.load(tmp_path / "run", device="cpu", mix=mix).embed_texts(["a star"]) for mix in (1, 0))
    assert np.array_equal(kept, none) == (base > trained)
    with pytest.raises(UserError, match="--mix: prompts cannot be scaled"):
        options = ("--adapter.kind", "s2a", "--adapter.prompts", 2, "--choose_mix", "true")
        call(TRAIN, "--data.root", dataset, "--output", tmp_path / "other", *QUICK, *options)


def test_an_adapter_of_format_1_gives_the_same_embeddings(trained: Path, tmp_path: Path):
    config = json.loads((trained / "vlkit_adapter.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "format_version": 1}))
    (tmp_path / "adapter_model.safetensors").write_bytes((trained / "vlkit_adapter.safetensors").read_bytes())
    old, new = (vlkit.load(folder, device="cpu") for folder in (tmp_path, trained))
    assert np.array_equal(old.embed_texts(["a star"]), new.embed_texts(["a star"]))


def test_index_is_incremental_and_search_finds(trained: Path, dataset: Path, tmp_path: Path, capsys):
    images, index = tmp_path / "images", tmp_path / "idx"
    images.mkdir()
    for i in range(8):
        (images / f"{i}.png").write_bytes((dataset / f"test{i}.png").read_bytes())
    (images / "broken.jpg").write_bytes(b"no image")
    call(INDEX, "--model", trained, "--images", images, "--index", index)
    out = capsys.readouterr()
    assert "8 new" in out.out and "1 unreadable" in out.out and "broken.jpg" in out.err
    (images / "0.png").unlink()
    (images / "1.png").write_bytes((dataset / "train0.png").read_bytes())
    (images / "sub").mkdir()
    (images / "sub" / "new.png").write_bytes((dataset / "train1.png").read_bytes())
    call(INDEX, "--model", trained, "--images", images, "--index", index)
    assert "1 new, 1 changed, 6 unchanged, 1 removed" in capsys.readouterr().out
    call(SEARCH, "--index", index, "--image", dataset / "train1.png", "--k", 3, "--json", tmp_path / "hits.json")
    hits = json.loads((tmp_path / "hits.json").read_text())["results"]
    assert (
        len(hits) == 3 and hits[0]["image"].endswith("sub/new.png") and hits[0]["score"] == pytest.approx(1, abs=1e-4)
    )
    call(SEARCH, "--index", index, "--text", "a red house", "--k", 50, "--json", tmp_path / "hits.json")
    hits = json.loads((tmp_path / "hits.json").read_text())["results"]
    assert len(hits) == 8 and [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)
    with pytest.raises(UserError, match="idx"):
        call(INDEX, "--base", "tiny", "--images", images, "--index", index)


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        (TRAIN, ("--data.root", "no/such/folder"), "no/such/folder"),
        (TRAIN, ("--adapter.rank", 4), "rank"),
        (TRAIN, ("--adapter.late", 9), "--adapter.late 9"),
        (TRAIN, ("--adapter.taps", "[3,1]"), "--adapter.taps"),
        (TRAIN, ("--base", "ViT-B-33"), "ViT-B-33"),
        (TRAIN, ("--learning_rate", 1), "learning_rate"),
        (EVALUATE, ("--model", "no/such/run"), "no/such/run"),
        (EVALUATE, (), "--model"),
        (SEARCH, ("--index", "no/such/index", "--text", "x"), "no/such/index"),
        (INDEX, ("--images", "no/such/images", "--index", "i", "--base", "tiny"), "no/such/images"),
    ],
)
def test_wrong_input_is_one_line(script: str, words: tuple, named: str, dataset: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if script == TRAIN:
        words = (*words, "--output", tmp_path / "run", *(() if "--data.root" in words else ("--data.root", dataset)))
    if script == EVALUATE and words:
        words = (*words, "--data.root", dataset)
    assert named in refuse(script, *words)


SLOW_RUN = ("--epochs", 6, "--batch_size", 4, "--device", "cpu", "--checkpoint_every", 3, "--data.augment", "crop")


def _slow_run(dataset: Path, folder: Path, *words: object) -> list[str]:
    return command(TRAIN, "--data.root", dataset, "--output", folder, *SLOW_RUN, *words)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_killed_and_resumed_run_ends_with_the_same_weights(dataset: Path, tmp_path: Path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    subprocess.run(_slow_run(dataset, whole), check=True, env=_environment(), capture_output=True)
    rng, kills = random.Random(0), 0
    while kills < 3:
        # --resume on a folder without a run starts one.
        process = subprocess.Popen(
            _slow_run(dataset, pieces, "--resume"), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        before = _lines(pieces)
        wanted = before + rng.randint(1, 3)
        while process.poll() is None and _lines(pieces) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    done = subprocess.run(_slow_run(dataset, pieces, "--resume"), env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, got = (load_file(folder / "vlkit_adapter.safetensors") for folder in (whole, pieces))
    assert expected.keys() == got.keys()
    differing = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert differing == []


def _lines(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [
        ("--adapter.handoff", "tokens", "--adapter.dropout", 0),
        ("--adapter.kind", "lst", "--adapter.start", "fisher", "--adapter.fisher_examples", 3),
    ],
    ids=["sherl", "lst"],
)
def test_two_processes_train_as_one(adapter: tuple, dataset: Path, tmp_path: Path):
    words = ("--data.root", dataset, *QUICK, *adapter, "--lr", 0.0005)
    call(TRAIN, "--output", tmp_path / "one", *words)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    two = [*launcher, "--standalone", str(ROOT / TRAIN), "--output", str(tmp_path / "two"), *map(str, words)]
    done = subprocess.run(two, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, both = (load_file(tmp_path / name / "vlkit_adapter.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], both[name], atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_other_data_is_measured_without_and_with_the_adapter(trained: Path, dataset: Path, tmp_path: Path):
    options = ("--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "m.json")
    call(EVALUATE, *options, "--mix", 0)
    without = json.loads((tmp_path / "m.json").read_text())
    call(EVALUATE, *options, "--also", dataset)
    found = json.loads((tmp_path / "m.json").read_text())
    (other,) = found["also"].values()
    assert other["split"] == "test" and other["root"] == str(dataset)
    assert other["after"]["rsum"] == pytest.approx(found["rsum"])
    assert other["before"]["rsum"] == pytest.approx(without["rsum"])
    with pytest.raises(UserError, match=r"dataset\.json"):
        call(EVALUATE, *options, "--also", tmp_path)


def test_trains_without_gradients(dataset: Path, tmp_path: Path):
    """MeZO: no activations are saved, and the base's memory is all there is."""
    words = ("--data.root", dataset, "--output", tmp_path / "run", *QUICK, "--optimizer", "mezo", "--lr", 1e-4)
    call(TRAIN, *words, "--adapter.kind", "lora", "--adapter.targets", "qv", "--epochs", 1)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["saved_activation_bytes"] == 0 and metrics["after"]["rsum"] > 0
    assert (tmp_path / "run" / "checkpoint" / "start" / "state.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all("slope" in line for line in lines if "loss" in line)
