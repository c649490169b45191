"""Stored weights of a frozen base: rounding, gradients to inputs, bytes, every tower family, training and loading."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2dSame
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.m2m_100.modeling_m2m_100 import M2M100ScaledWordEmbedding

import vlkit
from helpers import tiny
from helpers.scripts import call, refuse
from helpers.towers import TOWERS
from vlkit.adapters import ADAPTERS
from vlkit.encoders import stored_layers, stored_weights
from vlkit.encoders.families import FAMILIES
from vlkit.encoders.load import load_base, load_text_base
from vlkit.encoders.stage import stage_hf, stage_vision
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.stored_layers import StoredLinear, store_weights, stored_layer, with_open_weights
from vlkit.encoders.stored_weights import NF4, StoredWeight, count_values, named_format, stored_format, with_format
from vlkit.encoders.towers.timm_vision import BareTimm
from vlkit.errors import UserError
from vlkit.memory import saved_bytes, shape_base
from vlkit.number_formats import unpack_codes
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.two_tower import HeadOptions

# Largest error of a value, as a share of the largest magnitude that shares its scale: half a step of each format.
ERRORS = {"bf16": 2**-8, "int8": 0.5 / 127, "nf4": max(b - a for a, b in itertools.pairwise(NF4)) / 2}


@pytest.mark.parametrize("form", ERRORS)
@pytest.mark.parametrize("shape", [(48, 192), (48, 100), (8, 16, 6, 6)])
def test_values_are_rounded_by_half_a_step_at_most(form, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    stored = StoredWeight(weight, form)
    found = stored.open()
    assert found.shape == weight.shape and stored.numel == weight.numel()
    largest = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1))
    assert ((found - weight).abs() <= ERRORS[form] * largest * (1 + 1e-5)).all()
    torch.testing.assert_close(StoredWeight(found, form).open(), found, rtol=1e-6, atol=1e-7)  # storing again is exact
    torch.testing.assert_close(stored.rows(2, 5).open(), found[2:5], rtol=0, atol=0)


@pytest.mark.parametrize("form", ERRORS)
def test_opened_for_a_product_in_autocast_s_dtype(form):
    """Rounded once: equal to the float32 weight that autocast would round."""
    stored = StoredWeight(torch.randn((48, 192), generator=torch.Generator().manual_seed(0)), form)
    assert stored.open_for_product().dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = stored.open_for_product()
    assert torch.equal(found, stored.open().to(torch.bfloat16))
    assert (found.data_ptr() == stored.codes.data_ptr()) == (form == "bf16")  # nothing to copy


def test_nf4_has_a_scale_for_each_64_neighbours():
    row = torch.cat([torch.full((64,), 0.01), torch.full((64,), 5.0), torch.tensor([-2.0])]).view(1, -1)
    torch.testing.assert_close(StoredWeight(row, "nf4").open(), row, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 64), (5, 192), (4, 101), (7, 30)])
def test_nf4_is_the_level_of_each_code_times_its_scale(dtype, shape, monkeypatch):
    """Also where rows end within a byte or a group, and where a slice ends within a row."""
    monkeypatch.setattr(stored_weights, "SLICE", 17)
    torch.manual_seed(0)
    stored = StoredWeight(torch.randn(shape, dtype=dtype), "nf4")
    codes = unpack_codes(stored.codes, 4, shape[1])
    expected = [[NF4[codes[i, j]] * float(stored.scales[i, j // 64]) for j in range(shape[1])] for i in range(shape[0])]
    torch.testing.assert_close(stored.open(), torch.tensor(expected, dtype=dtype))


def test_libraries_side_by_side(tmp_path):
    """Backward saves no more than on float weights, at the bytes of the format."""
    call("benchmarks/stored_weights.py", "--width", 64, "--blocks", 2, "--repeats", 1, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    plain, biases = rows["float32"], 2 * 5 * 64 * 4
    for form, bits in {"bf16": 16, "int8": 8 + 32 / 64, "nf4": 4 + 32 / 64}.items():
        row = rows[f"vlkit {form}"]
        assert row["saved_bytes"] == plain["saved_bytes"] and row["time_over_float32"] > 0
        assert row["weight_bytes"] - biases <= (plain["weight_bytes"] - biases) * bits / 32 + 16


@pytest.mark.parametrize("form", ERRORS)
def test_a_layer_gives_the_gradient_of_its_rounded_weight_and_saves_no_weight(form):
    torch.manual_seed(0)
    plain = nn.Linear(128, 96)
    layer = StoredLinear(StoredWeight(plain.weight, form), plain.bias)
    x = torch.randn(4, 5, 128, requires_grad=True)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, plain.bias))
    found = torch.autograd.grad(layer(x).square().sum(), [x, plain.bias])
    right = torch.autograd.grad(F.linear(x, layer.weight, plain.bias).square().sum(), [x, plain.bias])
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    deep = nn.Sequential(*(StoredLinear(StoredWeight(torch.randn(128, 128) / 11, form), None) for _ in range(6)))
    kept = saved_bytes(deep, lambda: deep(x.detach().requires_grad_()).sum())
    assert kept < 128 * 128 * 4, "not even one weight is saved"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_a_table_opens_only_the_rows_that_are_looked_up():
    torch.manual_seed(0)
    plain, ids = nn.Embedding(500, 64), torch.tensor([[3, 499], [0, 3]])
    for form in ERRORS:
        table = stored_layer(plain, form)
        torch.testing.assert_close(table(ids), table.weight[ids], rtol=0, atol=0)


class Doubled(nn.Linear):
    """A layer with a forward and a buffer of its own, as those of libraries have."""

    def __init__(self) -> None:
        super().__init__(64, 80)
        self.register_buffer("factor", torch.tensor(2.0), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.factor


OWN_FORWARD = {
    "padding of TensorFlow": (lambda: Conv2dSame(8, 80, 3, stride=2, bias=False), lambda: torch.randn(2, 8, 16, 16)),
    "standardised": (
        lambda: ScaledStdConv2dSame(8, 80, 3, stride=2, padding="same"),
        lambda: torch.randn(2, 8, 16, 16),
    ),
    "scaled": (lambda: M2M100ScaledWordEmbedding(90, 64, 1, 8.0), lambda: torch.tensor([[3, 89, 1]])),
    "scaled by a buffer": (lambda: Gemma3TextScaledWordEmbedding(90, 64, 1, 8.0), lambda: torch.tensor([[3, 89, 1]])),
    "linear": (Doubled, lambda: torch.randn(2, 5, 64)),
}


@pytest.mark.parametrize("form", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", OWN_FORWARD)
def test_a_subclass_keeps_its_own_forward(name: str, form):
    torch.manual_seed(0)
    make, inputs = OWN_FORWARD[name]
    layer, x = make().requires_grad_(False), inputs()
    owner = nn.Sequential(layer)
    store_weights(owner, form)
    assert owner[0] is not layer and stored_format(owner) == form
    found, copied = owner(x), copy.deepcopy(owner)(x)
    opened = with_open_weights(owner)
    assert type(opened[0]) is type(layer)
    layer.weight.copy_(owner[0].weight)
    for same in (copied, opened(x)):
        torch.testing.assert_close(same, found, rtol=0, atol=0)
    torch.testing.assert_close(found, layer(x))


def convolutional(name: str) -> StagedEncoder:
    return stage_vision(BareTimm(timm.create_model(name, num_classes=0)))


def whole_towers() -> dict[str, tuple[Callable[[], StagedEncoder], Callable[[], Tensor]]]:
    """Towers of every family, each with a batch for it; two pad as TensorFlow does, which trained their weights."""
    padded = ("tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100")
    texts = {family.name: (lambda family=family: stage_hf(tiny.tiny_text(family))) for family in FAMILIES}
    images = {name: (lambda name=name: convolutional(name)) for name in padded}
    return {
        **TOWERS,
        **{name: (make, lambda: tiny.images(2, 96)) for name, make in images.items()},
        **{name: (make, lambda: tiny.padded_ids((5, 9))) for name, make in texts.items()},
    }


@pytest.mark.parametrize("name", whole_towers())
def test_a_tower_computes_what_its_library_does_on_the_rounded_weights(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_layers, "SMALLEST", 64)
    make, batch = whole_towers()[name]
    tower, x = make().eval().requires_grad_(False), batch()
    rounded = copy.deepcopy(tower)
    store_weights(tower, "int8")
    count = 0
    for path, layer in tower.named_modules(remove_duplicate=False):
        if isinstance(getattr(layer, "stored", None), StoredWeight):
            leaf = "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"
            getattr(rounded.get_submodule(path), leaf).copy_(layer.stored.open())
            count += 1
    assert count > 2
    with torch.no_grad():
        torch.testing.assert_close(tower(x), rounded(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize(
    "kind", ["sherl", "unipt", "vqt", "dtl", "lst", "linear", "bitfit", "lora", "synqt", "side_attention", "s2a"]
)
def test_every_method_trains_on_a_stored_base(form, kind):
    base = load_base(f"tiny@{form}")
    torch.manual_seed(0)
    model = build_model(base, ADAPTERS[kind](), HeadOptions()).train()
    pixels, ids = tiny.images(3, 96), base.tokenize(["a red dog", "a cube", "two blue balls on a lawn"])
    images, texts, scale, _ = model(pixels, ids)
    loss = F.cross_entropy(scale * images @ texts.T, torch.arange(3))
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    assert stored_format(base.image) == form, "the base is still stored"


def test_the_output_is_close_to_the_base_s_own():
    plain = load_base("tiny")
    pixels, ids = tiny.images(4, 96), plain.tokenize(["a red dog", "a cube", "two blue balls on a lawn", "a house"])
    with torch.no_grad():
        right = [F.normalize(x, dim=-1) for x in (plain.image(pixels), plain.text(ids))]
        for form, least in {"bf16": 0.9999, "int8": 0.999, "nf4": 0.97}.items():
            base = load_base(f"tiny@{form}")
            for x, y in zip((base.image(pixels), base.text(ids)), right, strict=True):
                assert (F.normalize(x, dim=-1) * y).sum(1).min() > least, form
            assert base.identity["image"]["format"] == form
            assert base.identity["image"]["fingerprint"] != plain.identity["image"]["fingerprint"]
    assert count_values(base.image) == count_values(plain.image) == sum(p.numel() for p in plain.image.parameters())


@pytest.mark.parametrize("arch", ["RN50", "ViT-B-32", "convnext_base"])
def test_bytes_of_published_architectures(arch):
    model = shape_base(arch).image
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    store_weights(model, "int8")
    after = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert after < 0.3 * before


def test_t5_on_stored_weights(tmp_path: Path):
    plain, stored = load_text_base("tiny"), load_text_base("tiny@int8")
    ids = plain.tokenize(["a red dog sits on a lawn"])
    with torch.no_grad():
        x, y = (F.normalize(base.encoder(ids), dim=-1) for base in (plain, stored))
    assert (x * y).sum() > 0.99
    assert stored.decoder is not None and stored_format(stored.decoder) == "int8"


def test_names_and_flags():
    assert named_format("ViT-B-32:openai@nf4") == ("ViT-B-32:openai", "nf4")
    assert named_format("local-dir:me@home/x") == ("local-dir:me@home/x", "fp32")
    assert with_format("tiny", "fp32") == "tiny" and with_format("tiny@int8", "int8") == "tiny@int8"
    with pytest.raises(UserError, match="base 'tiny@int8' states int8"):
        with_format("tiny@int8", "nf4")
    with pytest.raises(UserError, match="no weight format 'int4'; the formats are fp32, bf16, int8, nf4"):
        load_base("tiny@int4")


@pytest.mark.slow
def test_trained_saved_and_loaded_as_it_was_stored(tmp_path: Path, dataset_of_squares: Path):
    words = ("--data.root", dataset_of_squares, "--epochs", 1, "--batch_size", 4, "--device", "cpu")
    call("tasks/retrieval/train.py", *words, "--base_weights", "int8", "--output", tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    config = json.loads((tmp_path / "run" / "vlkit_adapter.json").read_text())
    assert config["base"]["image"]["load"] == "tiny@int8" and config["base"]["image"]["format"] == "int8"
    assert metrics["total_parameters"] > 4_900_000
    model = vlkit.load(tmp_path / "run", device="cpu")
    assert stored_format(model.embedder.base.image) == "int8"
    message = refuse("tasks/retrieval/train.py", *words, "--base_weights", "nf4", "--adapter.kind", "full")
    assert "--base_weights nf4: full fine-tuning trains these weights" in message


@pytest.mark.slow
def test_the_memory_table_counts_the_stored_bytes(tmp_path: Path):
    words = ("--estimate", "true", "--device", "cpu", "--batch_size", 2, "--text_length", 8, "--json", tmp_path / "m")
    rows = {}
    for form in ("fp32", "int8", "nf4"):
        call("tasks/memory.py", "--base", "ViT-B-32", "--adapter.kind", "linear", *words, "--base_weights", form)
        rows[form] = json.loads((tmp_path / "m").read_text())["rows"][0]
    assert rows["int8"]["weight_bytes"] < 0.28 * rows["fp32"]["weight_bytes"]
    assert rows["nf4"]["weight_bytes"] < 0.17 * rows["fp32"]["weight_bytes"]
    assert rows["int8"]["total_parameters"] == rows["fp32"]["total_parameters"]
