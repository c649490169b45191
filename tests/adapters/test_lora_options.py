"""LoRA's options: which maps it updates, and LoRA-FA."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from helpers import tiny
from helpers.towers import SPATIAL, TOWERS, build, prepared, train
from vlkit.adapters.base import trained_state
from vlkit.adapters.projections import SplitAttention, split_projections
from vlkit.adapters.tuning import FullOptions, LoraOptions
from vlkit.encoders.stage import stage_vision
from vlkit.errors import UserError
from vlkit.memory import saved_bytes

TRANSFORMERS = [tower for tower in TOWERS if tower not in SPATIAL]


@pytest.mark.parametrize("tower", TOWERS)
def test_split_projections_change_nothing(tower: str) -> None:
    whole, x = prepared(tower), TOWERS[tower][1]()
    split = deepcopy(whole)
    split_projections(split)
    with torch.no_grad():
        torch.testing.assert_close(split(x), whole(x), rtol=0, atol=3e-6)
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in whole.parameters())


def test_split_projections_share_the_weights() -> None:
    whole = nn.MultiheadAttention(8, 2, batch_first=True)
    split = SplitAttention(whole)
    assert split.k_proj.weight.data_ptr() == whole.in_proj_weight[8:].data_ptr()
    assert split.out_proj.weight.data_ptr() == whole.out_proj.weight.data_ptr()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["none", "bool", "float", "per head", "padding", "float and padding"])
def test_split_attention_equals_torch(batch_first: bool, masked: str) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    mask = {
        "bool": later,
        "float": torch.zeros(5, 5, dtype=torch.float64).masked_fill(later, -torch.inf),
        "per head": torch.randn(6, 5, 5, dtype=torch.float64),
        "float and padding": torch.zeros(5, 5, dtype=torch.float64).masked_fill(later, -torch.inf),
    }.get(masked)
    options = {"attn_mask": mask, "key_padding_mask": padding if "padding" in masked else None, "need_weights": False}
    if masked == "float and padding":  # torch wants both masks of one type
        options["key_padding_mask"] = torch.zeros(3, 5, dtype=torch.float64).masked_fill(padding, -torch.inf)
    expected = whole(x, x, x, **options)[0]
    options["key_padding_mask"] = padding if "padding" in masked else None
    torch.testing.assert_close(SplitAttention(whole)(x, x, x, **options)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tower", TRANSFORMERS)
@pytest.mark.parametrize("targets", ["attention", "qv"])
@pytest.mark.parametrize("freeze_a", [False, True])
def test_trains_saves_and_loads(tower: str, targets: str, freeze_a: bool) -> None:
    options = LoraOptions(targets=targets, freeze_a=freeze_a, rank=2)
    model, x = build(options, tower), TOWERS[tower][1]()
    with torch.no_grad():
        torch.testing.assert_close(model(x).pooled, prepared(tower)(x), rtol=0, atol=3e-6)
    assert train(model, x, "pooled") == set()  # every trained weight has a gradient
    maps = {name.split(".lora_B.")[0].rsplit(".", 1)[-1] for name in trained_state(model) if ".lora_B." in name}
    assert len(maps) == (2 if targets == "qv" else 4)
    assert all((".lora_A." in name) <= (not freeze_a) for name, p in model.named_parameters() if p.requires_grad)
    # The first factor is random: it is saved even where it does not train.
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    assert sum(".lora_A." in name for name in state) == sum(".lora_B." in name for name in state)
    other = build(options, tower, seed=7)
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    torch.testing.assert_close(other(x).pooled, model(x).pooled, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fewer_maps_and_frozen_factors_save_fewer_bytes() -> None:
    """One ViT-like tower of width 128; the order is that of the options, and each step is worth something."""
    clip = tiny.tiny_clip(vision={"width": 128, "head_width": 32, "layers": 3})
    x = tiny.images(4)

    def kept(options: LoraOptions | FullOptions) -> int:
        model = options.build(deepcopy(stage_vision(clip)))
        with torch.no_grad():  # peft starts the second factor at zero; any value has the same graph
            return saved_bytes(model, torch.enable_grad()(lambda: model(x).pooled.sum()))

    full, every = kept(FullOptions()), kept(LoraOptions())
    attention, qv = kept(LoraOptions(targets="attention")), kept(LoraOptions(targets="qv"))
    frozen = {which: kept(LoraOptions(targets=which, freeze_a=True)) for which in ("all", "attention", "qv")}
    assert frozen["qv"] <= frozen["attention"] < 0.75 * full
    assert frozen["attention"] < attention and frozen["qv"] < qv < attention < every
    assert frozen["all"] < 0.8 * every


@pytest.mark.parametrize("targets", ["all", "attention"])
@pytest.mark.parametrize("tower", TRANSFORMERS)
def test_only_the_last_blocks_are_updated(tower: str, targets: str) -> None:
    model, x = build(LoraOptions(targets=targets, last_blocks=1, rank=2), tower), TOWERS[tower][1]()
    inside = {id(p) for p in model.base.transformer_block(model.base.depth - 1).parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(id(p) in inside for p in trained)
    assert train(model, x, "pooled") == set()
    every = build(LoraOptions(targets=targets, last_blocks=99, rank=2), tower)  # more than there are
    assert len(trained_state(every)) == len(trained) * every.base.depth


@pytest.mark.parametrize("towers", ["both", "image", "text"])
@pytest.mark.parametrize("tower", ["vit", "clip_text"])
def test_a_frozen_tower_saves_nothing_and_trains_nothing(tower: str, towers: str) -> None:
    model, x = build(LoraOptions(towers=towers, rank=2), tower), TOWERS[tower][1]()
    updated = towers in ("both", {"vit": "image", "clip_text": "text"}[tower])
    assert any(p.requires_grad for p in model.parameters()) == bool(trained_state(model)) == updated
    torch.testing.assert_close(model(x).pooled, prepared(tower)(x), rtol=0, atol=3e-6)
    if updated:
        assert train(model, x, "pooled") == set()
    else:
        assert not model(x).pooled.requires_grad


@pytest.mark.parametrize("saved", ["fp32", "int4"])
def test_saved_bytes_fall_with_the_number_of_updated_blocks(saved: str) -> None:
    tower = stage_vision(tiny.tiny_clip(vision={"width": 64, "head_width": 16, "layers": 4}))
    x = tiny.images(2)

    def kept(count: int) -> int:
        model = LoraOptions(last_blocks=count, saved=saved).build(deepcopy(tower))
        return saved_bytes(model, lambda: model(x).pooled.sum())

    one, two, four = (kept(count) for count in (1, 2, 4))
    assert two - one == pytest.approx((four - two) / 2, rel=0.01) and one < 0.4 * four


@pytest.mark.parametrize("tower", SPATIAL)
def test_last_blocks_need_transformer_blocks(tower: str) -> None:
    with pytest.raises(UserError, match=r"--adapter\.last_blocks 1: .* has no transformer blocks.*; leave it out"):
        build(LoraOptions(last_blocks=1), tower)


@pytest.mark.parametrize("tower", SPATIAL)
def test_a_tower_without_attention_says_what_to_use(tower: str) -> None:
    with pytest.raises(UserError, match=r"has no attention that peft can update; use --adapter\.targets all"):
        build(LoraOptions(targets="qv"), tower)


@pytest.mark.parametrize(("option", "value"), [("rank", 0), ("alpha", 0), ("dropout", 1.0), ("last_blocks", -1)])
def test_wrong_values_are_refused(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--adapter.{option} {value}: must be "):
        LoraOptions(**{option: value})


def test_the_default_has_the_names_of_older_adapters() -> None:
    """Adapters from before these options load: names and shapes of the default did not change."""
    state: dict[str, Tensor] = trained_state(build(LoraOptions(rank=2), "vit"))
    prefix = "base.model.transformer.resblocks.0"
    assert {name: list(t.shape) for name, t in state.items() if name.startswith(f"{prefix}.attn")} == {
        f"{prefix}.attn.lora_A.default.weight": [2, 32],
        f"{prefix}.attn.lora_B.default.weight": [96, 2],
        f"{prefix}.attn.base_layer.out_proj.lora_A.default.weight": [2, 32],
        f"{prefix}.attn.base_layer.out_proj.lora_B.default.weight": [32, 2],
    }
