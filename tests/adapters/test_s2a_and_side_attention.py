"""S2A's prompts and side modules, and the side networks after LAST and LoSA."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from helpers import tiny
from helpers.towers import TOWERS, build, prepared, train, view
from vlkit.adapters.s2a import S2aOptions, longer_mask
from vlkit.adapters.side_attention import Mixer, SideAttentionOptions
from vlkit.adapters.synqt import SynqtOptions
from vlkit.encoders.stage import stage_vision
from vlkit.errors import UserError
from vlkit.memory import saved_bytes

# --- S2A --------------------------------------------------------------------------------------------------------------


def test_a_longer_mask_shows_the_prompts_to_all() -> None:
    causal = torch.full((4, 4), -torch.inf).triu(1)
    assert torch.equal(longer_mask(causal, 4, 2), torch.full((6, 6), -torch.inf).triu(1))
    keys = torch.tensor([[[[True, True, False]]]])
    assert longer_mask(keys, 3, 2).tolist() == [[[[True, True, True, True, False]]]]
    pairs = torch.zeros(1, 1, 3, 3).masked_fill(torch.tensor([False, False, True]), -torch.inf)
    longer = longer_mask(pairs, 3, 2)
    assert longer.shape == (1, 1, 5, 5) and torch.equal(longer[..., 4].isinf(), torch.ones(1, 1, 5, dtype=torch.bool))
    assert (longer[..., :4] == 0).all()


@pytest.mark.parametrize("tower", ["vit", "timm", "clip_text", "bert", "t5"])
def test_prompts_reach_the_output_and_leave_no_trace_in_its_shape(tower: str) -> None:
    options = S2aOptions(bias=False, prompts=3, rank=0, saved="fp32")
    x = TOWERS[tower][1]()
    model, base = build(options, tower), deepcopy(prepared(tower))
    tokens = view(model, x, "tokens")
    assert tokens.shape == base.tokens(base_stream(base, x)).shape
    before = model(x).pooled
    assert train(model, x, "pooled") == set()
    assert not torch.allclose(model(x).pooled, before)


def base_stream(base: Any, x: torch.Tensor) -> Any:
    stream = base.embed(x)
    for i in range(base.depth):
        stream = base.block(i, stream)
    return stream


def test_side_modules_alone_start_at_the_base_and_stop_the_gradient_below() -> None:
    x = TOWERS["vit"][1]()
    model, base = build(S2aOptions(bias=False, prompts=0, layers=(2, 3)), "vit"), prepared("vit")
    torch.testing.assert_close(model(x).pooled, base(x), rtol=0, atol=3e-6)
    late = saved_bytes(model, lambda: model(x).pooled.sum())
    everywhere = build(S2aOptions(bias=False, prompts=0), "vit")
    assert late < 0.6 * saved_bytes(everywhere, lambda: everywhere(x).pooled.sum())


def test_parts_follow_the_tower() -> None:
    t5, resnet = build(S2aOptions(), "t5"), build(S2aOptions(), "resnet")
    assert t5.prompts is not None and not any(p.requires_grad for p in t5.base.parameters())
    assert resnet.prompts is None and any(p.requires_grad for p in resnet.base.parameters())
    assert set(resnet.sides) < {str(i) for i in range(resnet.base.depth)}  # not where the width changes


@pytest.mark.parametrize(
    ("options", "tower", "message"),
    [
        (S2aOptions(bias=True), "t5", "--adapter.bias true: .* has no biases to train; leave it out"),
        (S2aOptions(prompts=4), "resnet", r"--adapter.prompts 4: .*; use --adapter.prompts 0"),
        (S2aOptions(layers=(9,)), "vit", r"--adapter.layers \[9\]: give ascending block numbers among \[0, 1, 2, 3\]"),
        (S2aOptions(prompts=0, rank=0), "t5", "--adapter.kind s2a: with these options nothing in .* trains; choose"),
    ],
)
def test_s2a_refuses_what_a_tower_lacks(options: S2aOptions, tower: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(options, tower)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": False, "prompts": 0, "rank": 0}, "nothing trains; keep one of them"),
        ({"prompts": -1}, "--adapter.prompts -1: must be 0 or more"),
        ({"deep": True, "prompts": 0}, "--adapter.deep: needs prompts"),
    ],
)
def test_s2a_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        S2aOptions(**options)


# --- side attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["attention", "mixer"])
def test_without_layers_the_output_is_that_of_the_base(block: Any) -> None:
    x = TOWERS["vit"][1]()
    model = build(SideAttentionOptions(block=block, depth=0), "vit")
    assert list(model.adapter.parameters()) == [] and torch.equal(model(x).pooled, prepared("vit")(x))


def test_the_side_state_follows_its_recurrence() -> None:
    """``u_{i+1} = F_i(u_i + z_i)`` and ``s = u_m - sum z_i``, written out."""
    x = TOWERS["vit"][1]()
    model = build(SideAttentionOptions(gap=2, depth=2, rank=4), "vit")
    train(model, x, "tokens")
    stream, taps = model.read(x)
    assert [len(group) for group in model.adapter.groups] == [2, 2]
    u = torch.zeros_like(stream.hidden)
    for group, tap in zip(model.adapter.groups, taps, strict=True):
        u = u + tap.hidden
        for layer in group:
            n = layer.norm(u)
            weights = (layer.query(n) @ layer.key(n).transpose(1, 2) / 2).softmax(-1)
            u = u + layer.up(weights @ layer.value(n))
    s = u - sum(tap.hidden for tap in taps)
    assert s.abs().max() > 1e-3
    expected = model.base.tokens(stream.replace(hidden=stream.hidden + s))
    torch.testing.assert_close(view(model, x, "tokens"), expected, rtol=1e-4, atol=1e-4)


def test_lean_side_attention_saves_the_taps_alone() -> None:
    x, sizes = TOWERS["vit"][1](), {}
    for name, options in {
        "plain": SideAttentionOptions(lean=False),
        "lean": SideAttentionOptions(),
        "int8": SideAttentionOptions(tap_dtype="int8"),
    }.items():
        model = build(options, "vit").train()
        sizes[name] = saved_bytes(model, lambda m=model: m(x).pooled.sum())
    assert sizes["int8"] < 0.5 * sizes["lean"] < 0.25 * sizes["plain"]


def test_the_mixer_counts_an_images_tokens_and_says_so() -> None:
    mixers = build(SideAttentionOptions(block="mixer"), "vit").adapter.groups
    assert mixers[0][0].token_down.in_features == 17
    assert build(SideAttentionOptions(block="mixer"), "timm").adapter.groups[0][0].token_down.in_features > 17
    with pytest.raises(UserError, match="5 tokens, but it was built for 17; use images of the base's own size"):
        mixers[0][0](torch.zeros(1, 5, 32), None)
    texts = build(SideAttentionOptions(block="mixer"), "clip_text").adapter.groups
    assert not any(isinstance(module, Mixer) for module in texts.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "--adapter.rank 0: must be at least 1"),
        ({"lean": False, "tap_dtype": "int8"}, "--adapter.tap_dtype: belongs to --adapter.lean true"),
        ({"early_chunk": -1}, "--adapter.early_chunk -1: give 1 or more"),
    ],
)
def test_side_attention_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SideAttentionOptions(**options)


def test_a_gap_beyond_the_tower_is_refused() -> None:
    with pytest.raises(UserError, match=r"--adapter.gap 9: this tower has 4 blocks; give 1..4"):
        build(SideAttentionOptions(gap=9), "vit")


# --- SynQT ------------------------------------------------------------------------------------------------------------


def test_synqt_copies_the_final_norm_and_counts_its_parameters() -> None:
    model = build(SynqtOptions(), "vit")
    final = model.base.model.ln_post
    assert torch.equal(model.adapter.mix.final_norm.weight, final.weight)
    assert torch.equal(model.adapter.mix.final_norm.bias, final.bias)
    vit = tiny.tiny_clip(vision={"layers": 12, "width": 768, "head_width": 64, "image_size": 16})
    model = SynqtOptions(queries=4).build(stage_vision(vit))
    trained = sum(p.numel() for p in model.adapter.parameters()) - sum(
        p.numel() for p in model.adapter.head.parameters()
    )
    assert trained == 2_650_514 - 18_469  # published, without what never enters the graph


def test_synqt_drops_features_but_the_first() -> None:
    model, x = build(SynqtOptions(dropout=0.0, drop_path=0.9), "vit").train(), TOWERS["vit"][1]()
    features = torch.randn(64, 13, 32)
    dropped = model.adapter.mix(features)
    model.eval()
    kept = model.adapter.mix(features)
    assert not torch.allclose(dropped, kept)
    model.adapter.mix.drop_path = 0.0
    torch.testing.assert_close(model.adapter.mix.train()(features), kept)
    assert model(x).pooled.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "--adapter.queries 0: must be at least 1"),
        ({"drop_path": 1.0}, "--adapter.drop_path 1.0: must"),
    ],
)
def test_synqt_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SynqtOptions(**options)
