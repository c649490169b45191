"""Adapters as ONNX models: equal to the adapter in onnxruntime, with every file that immich reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from tokenizers import Tokenizer

from helpers import tiny
from helpers.contrastive import save_contrastive
from helpers.export import add_small_architecture, saved_adapter
from helpers.words import save_words
from vlkit.encoders import hub
from vlkit.encoders.tokenizer_files import as_transformers
from vlkit.errors import UserError
from vlkit.export import onnx as to_onnx
from vlkit.export.onnx import export_onnx
from vlkit.export.source import open_source

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


def embed(folder: Path, side: str, key: str, values: np.ndarray) -> np.ndarray:
    return runtime.InferenceSession(str(folder / side / "model.onnx")).run(None, {key: values})[0]


def test_the_folder_is_what_immich_reads(tmp_path: Path) -> None:
    source = open_source(saved_adapter(tmp_path / "run", "tiny", "sherl"))
    output = tmp_path / "a folder" / "onnx"
    found = export_onnx(source, output)
    assert set(found) == {"visual", "textual"} and max(found.values()) < 1e-5

    config = json.loads((output / "config.json").read_text())
    pad = json.loads((output / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    words = Tokenizer.from_file(str(output / "textual" / "tokenizer.json"))
    length = config["text_cfg"]["context_length"]
    words.enable_padding(length=length, pad_token=pad, pad_id=words.token_to_id(pad))
    words.enable_truncation(max_length=length)
    texts = ["a red dog", "Ünïcode!", "cat " * 100]
    ids = np.array([words.encode(text).ids for text in texts], dtype=np.int32)
    assert ids.shape == (3, 48)
    np.testing.assert_allclose(embed(output, "textual", "text", ids), source.pipeline.embed_texts(texts), atol=1e-5)

    preprocess = json.loads((output / "visual" / "preprocess_cfg.json").read_text())
    assert preprocess["size"] == [96, 96] and preprocess["interpolation"] == "bicubic" and len(preprocess["mean"]) == 3
    pixels = torch.randn(5, 3, 96, 96)
    with torch.no_grad():
        expected = source.pipeline.embedder.model.embed_images(pixels)
    np.testing.assert_allclose(embed(output, "visual", "image", pixels.numpy()), expected, atol=1e-5)
    with pytest.raises(UserError, match="already exists; give a new folder"):
        export_onnx(source, output)


@pytest.mark.parametrize("kind", ["unipt", "vqt", "lora", "s2a"])
def test_other_methods(kind: str, tmp_path: Path) -> None:
    source = open_source(saved_adapter(tmp_path / "run", add_small_architecture(tmp_path), kind))
    assert max(export_onnx(source, tmp_path / "onnx").values()) < 1e-5


@pytest.mark.parametrize("base", ["clip", "siglip", "pair"])
def test_other_bases(base: str, tmp_path: Path) -> None:
    if base == "pair":
        tiny.tiny_bert().save_pretrained(tmp_path / "bert")
        save_words(tmp_path / "bert")
        name = f"timm:test_vit:random+hf:{tmp_path / 'bert'}"
    else:
        save_contrastive(tmp_path / "base", base)
        name = f"hf:{tmp_path / 'base'}"
    source = open_source(saved_adapter(tmp_path / "run", name, "sherl"))
    assert max(export_onnx(source, tmp_path / "onnx").values()) < 1e-5


def test_clips_own_tokenizer_as_a_file(tmp_path: Path) -> None:
    own = open_clip.get_tokenizer("ViT-B-32")
    as_transformers(own).save_pretrained(tmp_path)
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("A dog's   photo!", "two cats, 3 cars & café", "", "I'm <b>here</b> 😀"):
        ids = own([text])[0]
        assert words.encode(text).ids == ids[: int(ids.argmax()) + 1].tolist()


def test_a_model_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(saved_adapter(tmp_path / "run", add_small_architecture(tmp_path), "linear"))
    right = to_onnx._ids_of_file
    monkeypatch.setattr(to_onnx, "_ids_of_file", lambda *what: right(*what).roll(1, dims=1))
    with pytest.raises(UserError, match="the textual model differs from the adapter by"):
        export_onnx(source, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists() and not list(tmp_path.glob(".onnx*"))
