"""How much of an adapter is applied: ``vlkit.adapters.mix``."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.towers import TOWERS, build, prepared, train
from vlkit.adapters import ADAPTERS
from vlkit.adapters.base import trained_state
from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.mix import Mix, Trained, merging_alpha
from vlkit.adapters.s2a import S2aOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.side_attention import SideAttentionOptions
from vlkit.adapters.synqt import SynqtOptions
from vlkit.adapters.tuning import BitfitOptions, FullOptions, LoraOptions
from vlkit.adapters.unipt.options import UniptOptions
from vlkit.adapters.vqt import VqtOptions
from vlkit.encoders.bases import Preprocess, clip_base
from vlkit.engine.checkpoint import load_trained, save_adapter
from vlkit.errors import UserError
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.model import adapter_config, build_model
from vlkit.tasks.two_tower import HeadOptions

OPTIONS: dict[str, tuple[Any, str]] = {
    "sherl on tokens": (SherlOptions(handoff="tokens"), "vit"),
    "sherl pooled": (SherlOptions(handoff="pooled"), "vit"),
    "sherl with batch norm": (SherlOptions(), "resnet"),
    "unipt": (UniptOptions(), "vit"),
    "lst": (LstOptions(), "bert"),
    "dtl": (DtlOptions(late=2), "vit"),
    "vqt": (VqtOptions(), "vit"),
    "synqt": (SynqtOptions(), "vit"),
    "side_attention": (SideAttentionOptions(), "clip_text"),
    "s2a": (S2aOptions(prompts=0), "vit"),
    "bitfit": (BitfitOptions(), "vit"),
    "lora": (LoraOptions(rank=2), "vit"),
    "lora on query and value, LoRA-FA": (LoraOptions(rank=2, targets="qv", freeze_a=True), "t5"),
    "s2a without prompts": (S2aOptions(prompts=0, saved="fp32"), "vit"),
    "full": (FullOptions(), "vit"),
    "full of a ResNet": (FullOptions(), "resnet"),
}


def pooled(options: Any, tower: str, state: dict[str, Tensor], mix: Mix | None = None) -> Tensor:
    model = build(options, tower)
    load_trained(model, state if mix is None else Trained(state, mix))
    with torch.no_grad():
        return model(TOWERS[tower][1]()).pooled


def trained(options: Any, tower: str) -> dict[str, Tensor]:
    model = build(options, tower, seed=3)
    train(model, TOWERS[tower][1](), "pooled", steps=2)
    return {name: tensor.clone() for name, tensor in trained_state(model).items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_from_the_base_to_the_adapter(name: str) -> None:
    options, tower = OPTIONS[name]
    state = trained(options, tower)
    with torch.no_grad():
        base = prepared(tower)(TOWERS[tower][1]())
    whole = pooled(options, tower, state)
    assert (whole - base).abs().max() > 1e-2
    assert torch.equal(pooled(options, tower, state, Mix()), whole)
    torch.testing.assert_close(pooled(options, tower, state, Mix(0.0)), base, rtol=0, atol=1e-5)
    half = pooled(options, tower, state, Mix(0.5))
    assert (half - base).abs().max() > 1e-3 and (half - whole).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sherl pooled", "unipt", "vqt"])
def test_pooled_methods_move_along_a_line(name: str) -> None:
    options, tower = OPTIONS[name]
    state = trained(options, tower)
    base, whole = (pooled(options, tower, state, Mix(alpha)) for alpha in (0.0, 1.0))
    torch.testing.assert_close(pooled(options, tower, state, Mix(0.25)), base + 0.25 * (whole - base))


@pytest.mark.parametrize("kind", sorted(set(ADAPTERS) - {options.kind for options, _ in OPTIONS.values()}))
def test_other_methods_are_scaled_or_refused(kind: str) -> None:
    state = trained(ADAPTERS[kind](), "vit")
    try:
        found = pooled(ADAPTERS[kind](), "vit", state, Mix(0.0))
    except UserError as error:
        assert "--mix" in str(error)
        return
    with torch.no_grad():
        torch.testing.assert_close(found, prepared("vit")(TOWERS["vit"][1]()), rtol=0, atol=1e-5)


# --- LiNeS ---


@pytest.mark.parametrize("kind", ["full", "bitfit", "lora"])
def test_lines_grows_with_the_block(kind: str) -> None:
    """alpha + beta l / (L - 1) for block l of 4, alpha outside the blocks."""
    options, state = OPTIONS[kind][0], trained(OPTIONS[kind][0], "vit")
    model = build(options, "vit")
    start = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    load_trained(model, Trained(state, Mix(0.4, 0.6)))
    for name, tensor in trained_state(model).items():
        block = int(name.split("resblocks.")[1].split(".")[0]) if "resblocks." in name else None
        factor = 0.4 if block is None else (0.4, 0.6, 0.8, 1.0)[block]
        factor = 1.0 if ".lora_A." in name else factor  # only the product is scaled
        first = torch.zeros_like(tensor) if factor == 1.0 else start[name]
        expected = state[name] if factor == 1.0 else first + factor * (state[name] - first)
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
        assert factor < 1.0 or torch.equal(tensor, state[name])  # the deepest block keeps its update, bit for bit


def test_lines_of_one_block_is_the_deepest() -> None:
    assert Mix(0.2, 0.5).factor(0, 1) == pytest.approx(0.7)
    assert Mix(0.2, 0.5).factor(None, 1) == 0.2


def test_merging_alpha() -> None:
    one, other = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 0.0])}
    assert merging_alpha([one, other], {"w": torch.tensor([4.0, -2.0])}) == pytest.approx(1 / 2)
    assert merging_alpha([one, other], {"w": torch.tensor([3.0, 0.0])}) == pytest.approx(6 / 3 / 2)
    with pytest.raises(ValueError, match="not zero"):
        merging_alpha([one], {"w": torch.zeros(2)})


# --- what is refused ---


def test_a_frozen_base_has_no_blocks_to_scale() -> None:
    with pytest.raises(UserError, match="--mix_beta: scales the blocks of a trained base"):
        pooled(SherlOptions(), "vit", trained_state(build(SherlOptions(), "vit")), Mix(0.5, 0.5))


def test_a_convolutional_tower_has_no_ramp() -> None:
    with pytest.raises(UserError, match="use --mix alone"):
        pooled(FullOptions(), "resnet", trained_state(build(FullOptions(), "resnet")), Mix(0.5, 0.5))


def test_prompts_have_no_scale() -> None:
    options = S2aOptions(prompts=2)
    with pytest.raises(
        UserError,
        match=r"--mix: prompts cannot be scaled \(train s2a with --adapter.prompts 0 for that\); leave it out",
    ):
        pooled(options, "vit", trained_state(build(options, "vit")), Mix(0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(UserError, match=r"--mix .*: give a finite number"):
        Mix(value)
    with pytest.raises(UserError, match=r"--mix_beta .*: give a finite number"):
        Mix(1.0, value)


# --- a saved adapter ---


@pytest.mark.parametrize("kind", ["sherl", "lora", "full"])
def test_load_with_mix(kind: str, tmp_path: Path) -> None:
    """At 0 a saved retrieval adapter is the zero-shot base, its identity head included."""

    def fresh() -> Any:
        preprocess, named = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3), {"library": "test", "name": "t"}
        tokenize = lambda texts: tiny.clip_ids((4,) * len(texts))  # noqa: E731
        return clip_base(deepcopy(prepared_clip), "t", tokenize, preprocess, named)

    prepared_clip = tiny.tiny_clip()
    base = fresh()
    options = ADAPTERS[kind]()
    model = build_model(base, options, HeadOptions())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "logit" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_adapter(tmp_path, model, adapter_config(base, options, HeadOptions(), {}))
    x = tiny.images(2)
    with torch.no_grad():
        zero_shot = torch.nn.functional.normalize(fresh().image(x), dim=-1)
        found = {alpha: load(tmp_path, "cpu", fresh(), mix=alpha) for alpha in (0.0, 0.5, 1.0)}
        vectors = {alpha: pipeline.embedder.model.embed_images(x) for alpha, pipeline in found.items()}
        expected = model.eval().embed_images(x)
    torch.testing.assert_close(vectors[0.0], zero_shot, rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors[1.0], expected, rtol=0, atol=1e-5)
    assert (vectors[0.5] - zero_shot).abs().max() > 1e-3
    # An index belongs to one mix.
    assert len({pipeline.identity for pipeline in found.values()}) == 3
