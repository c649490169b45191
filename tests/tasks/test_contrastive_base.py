"""CLIP and SigLIP in the format of transformers through the scripts: trained, evaluated, loaded, measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch.nn.functional import normalize

import vlkit
from helpers.contrastive import save_contrastive
from helpers.scripts import call
from vlkit.data.manifest import write_dataset
from vlkit.encoders import hub

TEXTS = ["a red dog", "a cube", "red cube", "a dog a dog"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


def noise(root: Path, task: str) -> Path:
    """A prepared dataset of noise: 6 + 3 + 3 images."""
    root.mkdir()
    rng, splits = np.random.default_rng(0), {}
    for number, split in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / f"{number}.png")
        record = {"id": str(number), "image": f"{number}.png"}
        if task == "vqa":
            record |= {"question_id": number, "question": "a red cube", "answers": [TEXTS[number % 2][2:]] * 10}
        else:
            record |= {"texts": [TEXTS[number % 4]]}
        splits.setdefault(split, []).append(record)
    write_dataset(root, name="noise", task=task, splits=splits, media_root=root, source="made for a test")
    return root


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_from_training_to_vectors(kind: str, tmp_path: Path) -> None:
    model, data, run = tmp_path / "a model + more", noise(tmp_path / "data", "retrieval"), tmp_path / "run"
    save_contrastive(model, kind)
    loss = "infonce" if kind == "clip" else "siglip"
    words = ("--data.root", data, "--base", f"hf:{model}", "--epochs", 1, "--batch_size", 3, "--device", "cpu")
    call("tasks/retrieval/train.py", *words, "--loss.kind", loss, "--output", run)
    cache = ("--cache", tmp_path / "taps", "--cache_dtype", "fp32")
    call("tasks/retrieval/train.py", *words, "--loss.kind", loss, *cache, "--output", tmp_path / "cached")
    assert losses(run) == pytest.approx(losses(tmp_path / "cached"), rel=1e-4)
    scores = tmp_path / "scores.json"
    call("tasks/retrieval/evaluate.py", "--model", run, "--data.root", data, "--split", "test", "--json", scores)
    after = json.loads((run / "metrics.json").read_text())["after"]
    assert json.loads(scores.read_text())["rsum"] == pytest.approx(after["rsum"])
    pipeline = vlkit.load(run, device="cpu")
    width = 16 if kind == "clip" else 32
    assert pipeline.embed_images([data / "9.png"]).shape == pipeline.embed_texts(["a red dog"]).shape == (1, width)
    measured = tmp_path / "memory.json"
    call("tasks/memory.py", "--base", f"hf:{model}", "--batch_size", 2, "--device", "cpu", "--json", measured)
    assert json.loads(measured.read_text())


def test_lora_is_written_for_peft_too_where_peft_can_hold_it(tmp_path: Path) -> None:
    data, run = noise(tmp_path / "data", "retrieval"), tmp_path / "run"
    model = save_contrastive(tmp_path / "model", "clip")
    words = ("--data.root", data, "--base", f"hf:{tmp_path / 'model'}", "--batch_size", 3, "--device", "cpu")
    lora = ("--adapter.kind", "lora", "--head.projection", "false", "--before", "false")
    call("tasks/retrieval/train.py", *words, *lora, "--epochs", 1, "--output", run)
    loaded = PeftModel.from_pretrained(model, str(run / "peft")).eval()
    ids = vlkit.load(run, device="cpu").embedder.base.tokenize(["a red dog"])
    with torch.no_grad():
        found = normalize(loaded.get_text_features(input_ids=ids).pooler_output, dim=-1)
    expected = vlkit.load(run, device="cpu").embed_texts(["a red dog"])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    stored = ("--base_weights", "int8", "--epochs", 1, "--output", tmp_path / "stored")
    call("tasks/retrieval/train.py", *words, *lora, *stored)
    assert (tmp_path / "stored" / "vlkit_adapter.json").exists() and not (tmp_path / "stored" / "peft").exists()


def test_its_text_tower_reads_questions(tmp_path: Path) -> None:
    model, data = tmp_path / "model", noise(tmp_path / "data", "vqa")
    save_contrastive(model, "siglip")
    words = ("--data.root", data, "--base", f"hf:{model}", "--text_base", "clip", "--epochs", 1, "--batch_size", 3)
    call("tasks/vqa/train.py", *words, "--device", "cpu", "--output", tmp_path / "run")
    answers = vlkit.load(tmp_path / "run", device="cpu").answer(data / "9.png", "a red cube")
    assert answers[0][0] in {"red dog", "cube"}
