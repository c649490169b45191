"""Loading bases by name: what is loaded, who it says it is, and what a wrong name or file is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import BertForMaskedLM, T5EncoderModel

from helpers import tiny
from helpers.architectures import SMALL, add_small_architectures
from helpers.words import save_words
from vlkit.data.transforms import image_transform
from vlkit.encoders import hub
from vlkit.encoders.bases import Preprocess, fingerprint
from vlkit.encoders.load import load_base, load_text_base
from vlkit.errors import UserError
from vlkit.memory.shapes import shape_base


@pytest.fixture(autouse=True)
def offline_with_small_architectures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    add_small_architectures(tmp_path_factory.mktemp("architectures"), monkeypatch)
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


def weights_of(arch: str, folder: Path, name: str, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    state = open_clip.create_model(arch).state_dict()
    path = folder / name
    if name.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def test_random_weights_are_announced_and_always_the_same(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        base = load_base("small-clip")
    assert "RANDOM WEIGHTS" in caplog.text
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers are left alone"
    assert load_base("small-clip").identity == base.identity
    assert base.identity["image"]["weights"] == "random"
    assert base.identity["image"]["fingerprint"] != base.identity["text"]["fingerprint"]
    ids = base.tokenize(["a red cube", "two dogs"])
    assert ids.dtype == torch.int64 and ids.shape == (2, 12)
    assert base.image(tiny.images()).shape == base.text(ids).shape == (2, 16)
    assert base.logit_bias is None and base.logit_scale == pytest.approx(2.6593, abs=1e-3)
    assert json.loads(json.dumps(base.identity)) == base.identity


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
def test_weights_from_a_file(tmp_path: Path, name: str) -> None:
    path = weights_of("small-clip", tmp_path, name)
    base = load_base(f"small-clip:{path}")
    torch.manual_seed(1)
    model = open_clip.create_model("small-clip").eval()
    ids = base.tokenize(["a red cube"])
    with torch.no_grad():
        torch.testing.assert_close(base.text(ids), model.encode_text(ids))
        torch.testing.assert_close(base.image(tiny.images()), model.encode_image(tiny.images()))
    assert base.identity["text"] == {
        "library": "open_clip",
        "name": "small-clip",
        "weights": str(path),
        "fingerprint": fingerprint(base.text.model),
    }


def test_towers_do_not_hold_each_other(tmp_path: Path) -> None:
    base = load_base("small-clip")
    image, text = ({id(weight) for weight in tower.parameters()} for tower in (base.image, base.text))
    assert image and text and not image & text
    assert not any(isinstance(module, open_clip.CLIP) for module in [*base.image.modules(), *base.text.modules()])


def test_published_weights_bring_their_own_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights_of("small-clip", tmp_path, "weights.safetensors")
    tags = {"old": {"url": "nowhere", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-clip", tags)
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(path))
    base = load_base("small-clip:old")
    expected = load_base(f"small-clip-quickgelu:{path}")
    plain = load_base(f"small-clip:{path}")
    images = tiny.images()
    torch.testing.assert_close(base.image(images), expected.image(images))
    assert not torch.allclose(base.image(images), plain.image(images), atol=1e-4)
    assert base.preprocess.mean == (0.1, 0.2, 0.3)
    assert plain.preprocess.mean == (0.1, 0.2, 0.3), "a bare file is prepared as the published weights all are"


def test_a_local_folder_as_open_clip_publishes_it(tmp_path: Path) -> None:
    config = {"model_cfg": SMALL["small-clip"], "preprocess_cfg": {"mean": [0.1, 0.1, 0.1], "resize_mode": "squash"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(f"local-dir:{tmp_path}")
    weights_of("small-clip", tmp_path, "open_clip_model.safetensors")
    base = load_base(f"local-dir:{tmp_path}")
    assert base.preprocess.mean == (0.1, 0.1, 0.1) and base.preprocess.resize_mode == "squash"
    assert base.tokenize(["a dog"]).shape == (1, 12)


def test_tokenizer_of_the_hub_is_asked_for_only_when_a_text_comes(tmp_path: Path) -> None:
    base = load_base("small-siglip")
    assert base.logit_bias == -10
    with pytest.raises(UserError, match=r"nobody/has-this-tokenizer.*into the folder of the weights file"):
        base.tokenize(["A dog."])
    path = weights_of("small-siglip", tmp_path, "weights.safetensors")
    save_words(tmp_path)
    for base in (load_base(f"small-siglip:{path}"), load_base("small-siglip", tokenizer=tmp_path)):
        assert base.tokenize(["A dog."]).tolist() == [[3, 4] + [0] * 10]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small-clop", "no architecture 'small-clop'; close: small-clip"),
        ("VIT-B-32", "close: ViT-B-32"),
        ("ViT-B-32:openia", "'openia' is neither a file nor a tag of ViT-B-32 .tags: openai"),
        ("ViT-B-32:openai", "could not be fetched.*ViT-B-32:FILE"),
        ("hf-hub:nobody/nothing", "cannot be loaded"),
        ("local-dir:nowhere", "cannot be loaded.*nowhere/open_clip_config.json"),
    ],
)
def test_wrong_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_base(name)
    assert "\n" not in str(raised.value)


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(weights_of("small-clip", tmp_path, "whole.safetensors").read_bytes()[:500])
    pickled = tmp_path / "pickled.pt"
    torch.save(nn.Linear(2, 2), pickled)
    text = tmp_path / "text.bin"
    text.write_text("not weights")
    wider = tiny.tiny_clip(text={"vocab_size": 49408}, vision={"width": 64})
    save_file(wider.state_dict(), tmp_path / "wider.safetensors")
    for name, message in {
        "other.pt": "not weights of small-clip: missing .*; unexpected weight, bias",
        "truncated.safetensors": "cannot be read as a state dict",
        "pickled.pt": "holds other objects than tensors",
        "text.bin": "cannot be read as a state dict",
        "wider.safetensors": r"visual\.class_embedding is \[64\], expected \[32\]",
    }.items():
        with pytest.raises(UserError, match=message) as raised:
            load_base(f"small-clip:{tmp_path / name}")
        assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_fingerprint_tells_weights_apart_and_nothing_else(tmp_path: Path) -> None:
    model = tiny.tiny_clip().visual
    same = tiny.tiny_clip().visual
    assert fingerprint(model) == fingerprint(same) != fingerprint(tiny.tiny_clip(seed=1).visual)
    assert fingerprint(model.double().float().train()) == fingerprint(same)
    with torch.no_grad():
        same.ln_post.weight[0] += 1e-3
    assert fingerprint(model) != fingerprint(same)
    counting = nn.Linear(100, 3)
    with torch.no_grad():
        counting.weight.copy_(torch.arange(300.0).reshape(3, 100))
        counting.bias.fill_(0.5)
    assert fingerprint(counting) == "179e62d0fe47479cda0d406b08051884", "adapters record this"


@pytest.mark.parametrize("load", [load_base, shape_base])
def test_how_images_get_the_shape_of_the_input_is_part_of_the_name(load: Any) -> None:
    """``NAME@squash`` keeps both ends of a wide image, which a centre crop cuts off; weights and identity stay."""
    wide = Image.new("RGB", (300, 96), (255, 0, 0))
    wide.paste((0, 0, 255), (100, 0, 200, 96))
    own, whole = load("tiny"), load("tiny@squash")
    assert whole.name == "tiny@squash" and whole.identity == own.identity
    cut, kept = (image_transform(base.preprocess)(wide) for base in (own, whole))
    assert cut.shape == kept.shape == (3, 96, 96)
    red, blue = (kept[:, 48, at] for at in (2, 48))
    assert red[0] > red[2] and blue[2] > blue[0] and not (cut[0] > cut[2]).any()
    both = load("tiny@longest@int8")
    assert both.preprocess.resize_mode == "longest" and both.identity["image"]["format"] == "int8"


def test_preprocess_survives_json() -> None:
    preprocess = Preprocess((224, 200), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bilinear", "squash", 255)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


# --- text bases ------------------------------------------------------------------------------------------------------


def test_t5_from_a_folder(tmp_path: Path) -> None:
    model = tiny.tiny_t5()
    model.save_pretrained(tmp_path)
    save_words(tmp_path)
    base = load_text_base(str(tmp_path))
    ids = base.tokenize(["a red dog", "a"])
    assert ids.tolist() == [[3, 5, 4], [3, 0, 0]]
    assert base.tokenize(["a red dog"], max_length=2).tolist() == [[3, 5]]
    stream = base.encoder.embed(ids)
    for i in range(base.encoder.depth):
        stream = base.encoder.block(i, stream)
    expected = model.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(base.encoder.tokens(stream), expected)
    assert base.start_id == 0 and base.decoder is not None
    assert set(base.identity) == {"encoder", "decoder"}
    assert base.identity["encoder"]["weights"] == str(tmp_path)


def test_encoder_only_t5_has_no_decoder(tmp_path: Path) -> None:
    T5EncoderModel(tiny.tiny_t5().config).save_pretrained(tmp_path)
    save_words(tmp_path)
    base = load_text_base(str(tmp_path))
    assert base.decoder is None and base.start_id is None and set(base.identity) == {"encoder"}


@pytest.mark.parametrize("pooler", [True, False])
def test_bert_pools_with_its_pooler_only_if_the_weights_have_one(tmp_path: Path, pooler: bool) -> None:
    bert = tiny.tiny_bert(pooler=pooler)
    if pooler:
        bert.save_pretrained(tmp_path)
    else:
        language_model = BertForMaskedLM(bert.config)
        language_model.bert = bert
        language_model.save_pretrained(tmp_path)
    save_words(tmp_path)
    base = load_text_base(str(tmp_path))
    ids = base.tokenize(["a red dog"])
    expected = bert(ids, attention_mask=(ids != 0).long())
    pooled = expected.pooler_output if pooler else expected.last_hidden_state[:, 0]
    torch.testing.assert_close(base.encoder(ids), pooled)


def test_wrong_text_bases_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody/nothing.*cannot be loaded"):
        load_text_base("nobody/nothing")
    tiny.tiny_bert().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer files"):
        load_text_base(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(UserError, match="family 'gpt2' cannot be staged; these can: bert, roberta"):
        load_text_base(str(tmp_path))
