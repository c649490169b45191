"""A pair of unimodal encoders through the scripts: trained with and without a cache, evaluated, loaded, measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image

import vlkit
from helpers import tiny
from helpers.demo_server import demo_server
from helpers.scripts import call, refuse
from helpers.words import save_words
from vlkit.data.manifest import write_dataset
from vlkit.encoders import hub

TRAIN, EVALUATE, MEMORY = "tasks/retrieval/train.py", "tasks/retrieval/evaluate.py", "tasks/memory.py"
INDEX, SEARCH = "tasks/retrieval/index.py", "tasks/retrieval/search.py"
TEXTS = ["a red dog", "a cube", "red cube", "a dog a dog"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``--base`` of a small EfficientNet and a tiny BERT."""
    folder = tmp_path_factory.mktemp("a folder + more")
    tiny.tiny_bert().save_pretrained(folder)
    save_words(folder)
    return f"timm:test_efficientnet:random+hf:{folder}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of noise: 8 + 4 + 4 images with two captions each."""
    root = tmp_path_factory.mktemp("noise")
    rng, splits = np.random.default_rng(0), {}
    for split, count in {"train": 8, "val": 4, "test": 4}.items():
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(root / f"{split}{i}.png")
            texts = [TEXTS[i % 4], TEXTS[(i + 1) % 4]]
            splits.setdefault(split, []).append({"id": f"{split}/{i}", "image": f"{split}{i}.png", "texts": texts})
    write_dataset(root, name="noise", task="retrieval", splits=splits, media_root=root, source="made for a test")
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_from_training_to_vectors(base: str, dataset: Path, tmp_path: Path) -> None:
    words = ("--data.root", dataset, "--base", base, "--epochs", 1, "--batch_size", 4, "--device", "cpu")
    # Exact gradients: by default a cached step rounds other tensors than a whole one.
    head = ("--head.pool", "gpo", "--head.dim", 32, "--loss.kind", "triplet", "--adapter.tap_dtype", "fp32")
    call(TRAIN, *words, *head, "--output", tmp_path / "plain")
    cache = ("--cache", tmp_path / "store", "--cache_dtype", "fp32")
    call(TRAIN, *words, *head, *cache, "--output", tmp_path / "cached")
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)

    plain, cached = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "cached"))
    assert plain["before_is"].startswith("ridge") and plain["before"] == pytest.approx(cached["before"])

    config = json.loads((tmp_path / "plain" / "vlkit_adapter.json").read_text())
    assert {tower: who["load"] for tower, who in config["base"].items()} == {"image": base, "text": base}
    assert config["base"]["image"]["fingerprint"] != config["base"]["text"]["fingerprint"]
    pipeline = vlkit.load(tmp_path / "plain", device="cpu")
    vectors = pipeline.embed_images([dataset / "test0.png"]), pipeline.embed_texts(["a red dog"])
    assert [v.shape for v in vectors] == [(1, 32), (1, 32)]
    found = tmp_path / "scores.json"
    call(EVALUATE, "--model", tmp_path / "plain", "--data.root", dataset, "--split", "test", "--json", found)
    assert json.loads(found.read_text())["rsum"] == pytest.approx(plain["after"]["rsum"])


def test_a_sooner_start_on_part_of_the_data(base: str, dataset: Path, tmp_path: Path) -> None:
    words = ("--data.root", dataset, "--base", base, "--epochs", 1, "--batch_size", 3, "--device", "cpu")
    part = ("--data.limit", 4, "--before", "false", "--start", "random", "--adapter.kind", "linear")
    cache = ("--cache", tmp_path / "store", "--cache_dtype", "fp32", "--cache_test", "true")
    call(TRAIN, *words, *part, *cache, "--output", tmp_path / "part")
    metrics = json.loads((tmp_path / "part" / "metrics.json").read_text())
    assert metrics["before"] == {} and "before_is" not in metrics
    call(
        EVALUATE, "--model", tmp_path / "part", "--data.root", dataset, "--split", "test", "--json", tmp_path / "s.json"
    )
    assert json.loads((tmp_path / "s.json").read_text())["rsum"] == pytest.approx(metrics["after"]["rsum"])
    assert "has 8 records; give at most this many" in refuse(TRAIN, *words, "--data.limit", 9)
    assert "--cache_test: needs --cache" in refuse(TRAIN, *words, "--cache_test", "true")
    assert "has a joint space" in refuse(TRAIN, "--base", "tiny", "--start", "ridge", "--data.root", dataset)


@pytest.mark.slow
def test_its_folder_is_indexed_searched_and_served(base: str, dataset: Path, tmp_path: Path) -> None:
    words = ("--data.root", dataset, "--base", base, "--epochs", 1, "--batch_size", 4, "--device", "cpu")
    call(TRAIN, *words, "--before", "false", "--output", tmp_path / "run")
    call(INDEX, "--model", tmp_path / "run", "--images", dataset, "--index", tmp_path / "idx", "--device", "cpu")
    found = tmp_path / "hits.json"
    call(SEARCH, "--index", tmp_path / "idx", "--image", dataset / "test1.png", "--k", 3, "--json", found)
    hits = json.loads(found.read_text())["results"]
    assert Path(hits[0]["image"]).name == "test1.png" and hits[0]["score"] == pytest.approx(1, abs=1e-4)
    with demo_server("--model", tmp_path / "run", "--images", dataset) as server:
        gallery = Client(server.url, verbose=False).predict("a red dog", 3, api_name="/search")
    assert "test" in json.dumps(gallery) or "train" in json.dumps(gallery)


def test_memory_is_measured(base: str, tmp_path: Path) -> None:
    words = ("--base", base, "--adapter.kind", "sherl", "--batch_size", 4, "--device", "cpu")
    call(MEMORY, *words, "--json", tmp_path / "memory.json")
    assert json.loads((tmp_path / "memory.json").read_text())


def test_the_pair_alone_is_not_evaluated(base: str, dataset: Path) -> None:
    message = refuse(EVALUATE, "--base", base, "--data.root", dataset, "--split", "test", "--device", "cpu")
    assert "give an adapter folder" in message


@pytest.mark.parametrize("task", ["grounding", "vqa"])
def test_fused_tasks_read_its_grid_and_its_text_encoder(base: str, task: str, tmp_path: Path) -> None:
    root, rng, splits = tmp_path / "data", np.random.default_rng(0), {}
    root.mkdir()
    for number, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(root / f"{number}.png")
        record = {"id": str(number), "image": f"{number}.png"}
        if task == "vqa":
            record |= {"question_id": number, "question": "a red cube", "answers": [TEXTS[number % 2][2:]] * 10}
        else:
            record |= {"text": TEXTS[number % 4], "box": [5.0, 5.0, 40.0, 30.0]}
        splits.setdefault(split, []).append(record)
    write_dataset(root, name="noise", task=task, splits=splits, media_root=root, source="made for a test")
    words = ("--data.root", root, "--base", base, "--text_base", "clip", "--epochs", 1, "--batch_size", 3)
    call(f"tasks/{task}/train.py", *words, "--device", "cpu", "--output", tmp_path / "run")
    pipeline = vlkit.load(tmp_path / "run", device="cpu")
    if task == "vqa":
        assert pipeline.answer(root / "8.png", "a red cube")[0][0] in {"red dog", "cube"}
    else:
        box, _ = pipeline.ground(root / "8.png", "a red dog")
        assert len(box) == 4 and 0 <= box[0] <= box[2] <= 60
