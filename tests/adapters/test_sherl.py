"""SHERL on real staged towers: every flavour on every family does what an adapter must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers import tiny
from helpers.sherl_pairs import PAIRS, build, wake_
from helpers.towers import TEXT, TOWERS, prepared
from vlkit.adapters.base import AdaptedEncoder, trained_state
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.encoders.stage import stage_hf, stage_t5_decoder
from vlkit.encoders.staged import run_blocks
from vlkit.errors import UserError

every_pair = pytest.mark.parametrize(("tower", "flavour"), PAIRS)
every_pair_and_start = pytest.mark.parametrize(
    ("tower", "flavour", "init"), [(*pair, init) for pair in PAIRS for init in ("published", "identity")]
)


def train(model: AdaptedEncoder, x: Tensor, steps: int = 3) -> dict[str, bool]:
    """Take optimizer steps on a loss with every output in it; returns which weights ever had a non-zero gradient."""
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    used = dict.fromkeys(trained, False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(steps):
            pooled = model(x).pooled
            (pooled * torch.randn_like(pooled)).sum().backward()
            for name, p in trained.items():
                used[name] |= p.grad is not None and bool(p.grad.count_nonzero())
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    return used


@every_pair
def test_shapes(tower: str, flavour: str) -> None:
    pooled = flavour.startswith("pooled")
    model, x = build(tower, flavour, reads="pooled" if pooled else "tokens"), TOWERS[tower][1]()
    encoded = model(x)
    last = run_blocks(model.base, model.base.embed(x), 0, model.base.depth)

    assert encoded.pooled.shape == (len(x), model.base.out_dim)
    assert encoded.pooled.isfinite().all() and encoded.pooled.requires_grad
    if not pooled:
        assert encoded.tokens.shape == model.base.tokens(last).shape
        assert (encoded.mask is None) == (last.mask is None)
        assert encoded.mask is None or torch.equal(encoded.mask, last.mask)


@every_pair_and_start
def test_training_moves_the_adapter_alone(tower: str, flavour: str, init: str) -> None:
    model, x = wake_(build(tower, flavour, init)), TOWERS[tower][1]()
    base = {name: t.clone() for name, t in model.base.state_dict().items()}
    adapter = {name: p.clone() for name, p in model.adapter.named_parameters()}
    used = train(model, x)

    assert used and all(name.startswith("adapter.") for name in used)
    assert [name for name, ever in used.items() if not ever] == []
    assert all(torch.equal(t, base[name]) for name, t in model.base.state_dict().items())
    assert not any(torch.equal(p, adapter[name]) for name, p in model.adapter.named_parameters())


@every_pair
def test_identity_starts_at_the_base(tower: str, flavour: str) -> None:
    model, x = build(tower, flavour, "identity"), TOWERS[tower][1]()
    with torch.no_grad():
        torch.testing.assert_close(model(x).pooled, model.base(x), rtol=0, atol=1e-6)
        model.train()  # dropout and batch statistics of the adapter must not show either
        torch.testing.assert_close(model(x).pooled, model.base(x), rtol=0, atol=1e-6)


@every_pair
def test_published_starts_without_the_base_state(tower: str, flavour: str) -> None:
    """Gate 0: the late block sees the side feature alone. In the joint space the base's embedding is always added."""
    model, x = build(tower, flavour), TOWERS[tower][1]()
    stream, taps = model.read(x)
    if model.adapter.handoff == "tokens":
        merged = model.adapter(taps, stream.hidden)
        torch.testing.assert_close(model.adapter(taps, stream.hidden + 100.0), merged)
        assert model.adapter.gate.gamma.item() == 0.0
    else:
        last = model.base.pool(stream)
        nn.init.zeros_(model.adapter.head.proj.weight)
        nn.init.zeros_(model.adapter.head.proj.bias)
        assert torch.equal(model.adapter(taps, last), last)


@every_pair
def test_read_then_finish_equals_forward(tower: str, flavour: str) -> None:
    model, x = build(tower, flavour, "identity"), TOWERS[tower][1]()
    train(model, x)
    stream, taps = model.read(x)

    assert not any(tap.hidden.requires_grad for tap in taps)
    torch.testing.assert_close(model.finish(stream, taps).pooled, model(x).pooled, rtol=0, atol=1e-6)


@every_pair_and_start
def test_saved_and_loaded_gives_equal_outputs(tower: str, flavour: str, init: str) -> None:
    model, x = build(tower, flavour, init), TOWERS[tower][1]()
    train(model, x)
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    other = build(tower, flavour, init, seed=7)
    before = other(x).pooled
    missing, unexpected = other.load_state_dict(state, strict=False)

    assert all(name.startswith("adapter.") for name in state)
    assert unexpected == [] and all(name.startswith("base.") for name in missing)
    assert torch.equal(other(x).pooled, model(x).pooled)
    assert not torch.equal(before, other(x).pooled)


@pytest.mark.parametrize(("tower", "flavour"), [pair for pair in PAIRS if pair[0] in TEXT])
def test_padding_changes_nothing(tower: str, flavour: str) -> None:
    model, ids = build(tower, flavour, "identity"), TOWERS[tower][1]()
    train(model, ids)
    together = model(ids).pooled
    for row, length in enumerate((5, 9, 12)):
        alone = model(ids[row : row + 1, :length]).pooled[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)


@every_pair
def test_early_blocks_save_nothing(tower: str, flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(tower, flavour), TOWERS[tower][1]()
    saved: list[int] = []
    count_of: dict[int, int] = {}
    block, embed, finish = model.base.block, model.base.embed, model.base.finish_pooled
    last = model.base.depth - 1

    def counted(i: int, run: Callable) -> object:
        before = len(saved)
        result = run()
        count_of[i] = len(saved) - before
        return result

    monkeypatch.setattr(model.base, "block", lambda i, stream: counted(i, lambda: block(i, stream)))
    monkeypatch.setattr(model.base, "embed", lambda x: counted(-1, lambda: embed(x)))
    # Behind a pooled view the last block runs for the pooled token alone, by another way.
    monkeypatch.setattr(model.base, "finish_pooled", lambda stream: counted(last, lambda: finish(stream)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(0) or t, lambda t: t):
        model(x).pooled.sum().backward()

    early = {i: n for i, n in count_of.items() if i < model.stop}
    late = {i: n for i, n in count_of.items() if i >= model.stop}
    assert set(count_of) == set(range(-1, model.base.depth)) and saved
    assert set(early.values()) == {0}
    assert all(n > 0 for n in late.values()) and len(late) == model.adapter.late


@pytest.mark.parametrize(("late", "taps"), [(0, None), (2, None), (1, (0, 2)), (2, (0, 1))])
def test_late_blocks_and_taps(late: int, taps: tuple[int, ...] | None) -> None:
    model, x = wake_(build("vit", "text", late=late, taps=taps)), TOWERS["vit"][1]()

    assert model.adapter.layers == (taps or tuple(range(4 - late + 1)))
    assert model.stop == 4 - late
    assert all(train(model, x).values())


def test_reduction_sets_the_inner_width() -> None:
    for flavour, reduction, hidden in (("text", None, 16), ("gated", 4, 8), ("pooled", None, 16), ("pooled", 2, 8)):
        adapter = build("vit", flavour, reduction=reduction).adapter
        assert adapter.aggregator.score.in_features == hidden


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"late": 4}, "--adapter.late 4: this tower has 4 blocks; give 0..3"),
        ({"late": -1}, "--adapter.late -1"),
        ({"taps": (0, 4)}, "--adapter.taps [0, 4]: give ascending depths from 0..3"),
        ({"taps": (-1, 2)}, "--adapter.taps [-1, 2]"),
        ({"taps": (2, 1)}, "--adapter.taps [2, 1]"),
        ({"taps": (1, 1)}, "--adapter.taps [1, 1]"),
        ({"taps": (2,)}, "--adapter.taps [2]: SHERL needs 2 taps"),
        ({"taps": ()}, "--adapter.taps []"),
        ({"reduction": 0}, "--adapter.reduction 0"),
        ({"reduction": 33}, "--adapter.reduction 33: width 32"),
        ({"dropout": 1.0}, "--adapter.dropout 1.0"),
        ({"base_gate": True}, "--adapter.base_gate: belongs to --adapter.handoff pooled"),
    ],
)
def test_wrong_options(changes: dict, says: str) -> None:
    with pytest.raises(UserError) as raised:
        build("vit", "text", **changes)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"taps": ()}, "--adapter.taps []"),
        ({"taps": (0, 5)}, "--adapter.taps [0, 5]: give ascending depths from 0..4"),
        ({"reduction": 17}, "--adapter.reduction 17: width 16"),
        ({"late": 1}, "--adapter.late: belongs to --adapter.handoff tokens"),
        ({"flavour": "gated"}, "--adapter.flavour: belongs to --adapter.handoff tokens"),
        ({"dropout": 0.1}, "--adapter.dropout: belongs to --adapter.handoff tokens"),
    ],
)
def test_wrong_options_in_the_joint_space(changes: dict, says: str) -> None:
    with pytest.raises(UserError) as raised:
        SherlOptions(handoff="pooled", **changes).build(prepared("vit"))
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def handoff(options: SherlOptions, reads: str) -> str:
    return options.build(prepared("vit"), reads).adapter.handoff


def test_handoff_follows_the_head_and_the_options_given() -> None:
    assert handoff(SherlOptions(), "pooled") == handoff(SherlOptions(base_gate=True), "pooled") == "pooled"
    assert handoff(SherlOptions(), "tokens") == "tokens"
    for options in (SherlOptions(late=2), SherlOptions(flavour="gated"), SherlOptions(late=1, dropout=0.0)):
        assert handoff(options, "pooled") == "tokens"
    assert handoff(SherlOptions(dropout=0.3), "tokens") == "tokens"


@pytest.mark.parametrize(
    ("changes", "reads", "says"),
    [
        # A detail of one hand-off does not choose it: it is refused where it has no meaning.
        ({"dropout": 0.3}, "pooled", "--adapter.dropout: belongs to --adapter.handoff tokens; give both"),
        ({"keep": "all"}, "tokens", "--adapter.keep: belongs to --adapter.handoff pooled; give both"),
        ({"dropout": 0.3, "base_gate": True}, "pooled", "--adapter.dropout: belongs to --adapter.handoff tokens"),
        ({"late": 1, "base_gate": True}, "pooled", "--adapter.base_gate: belongs to --adapter.handoff pooled"),
        ({"late": 1, "keep": "all"}, "pooled", "--adapter.keep: belongs to --adapter.handoff pooled"),
        ({"flavour": "gated", "dropout": 0.3}, "tokens", "--adapter.dropout: belongs to --adapter.flavour text"),
    ],
)
def test_options_that_do_not_apply_are_refused(changes: dict, reads: str, says: str) -> None:
    with pytest.raises(UserError) as raised:
        SherlOptions(**changes).build(prepared("vit"), reads)
    assert str(raised.value).startswith(says) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"late": 2}, {"dropout": 0.1}, {"flavour": "gated"}, {"base_gate": True},
        {"handoff": "pooled"}, {"lean": False}, {"early_chunk": 4}, {"tap_dtype": "int8"}, {"keep": "all"},
    ],
)  # fmt: skip
def test_an_encoder_decoder_refuses_what_it_does_not_use(changes: dict) -> None:
    t5 = stage_hf(tiny.tiny_t5()), stage_t5_decoder(tiny.tiny_t5())
    (name,) = changes
    with pytest.raises(UserError, match=f"--adapter.{name}: SHERL on a decoder only runs as published"):
        SherlOptions(**changes).build_stacks(*t5)


def test_an_encoder_decoder_takes_reduction_and_start() -> None:
    stacks = SherlOptions(reduction=8, init="published", handoff="tokens").build_stacks(
        stage_hf(tiny.tiny_t5()), stage_t5_decoder(tiny.tiny_t5())
    )
    assert [stack.adapter.aggregator.score.in_features for stack in stacks] == [4, 4]
    assert [stack.adapter.gate.offset for stack in stacks] == [0.0, 0.0]


def test_an_encoder_decoder_taps_some_depths() -> None:
    t5 = stage_hf(tiny.tiny_t5()), stage_t5_decoder(tiny.tiny_t5())
    depth = t5[0].depth
    stacks = SherlOptions(taps=(0, 2, depth)).build_stacks(*t5)
    assert [stack.adapter.layers for stack in stacks] == [(0, 2, depth), (0, 2)]
    default = SherlOptions().build_stacks(stage_hf(tiny.tiny_t5()), stage_t5_decoder(tiny.tiny_t5()))
    assert [stack.adapter.layers for stack in default] == [tuple(range(depth + 1)), tuple(range(depth))]
    wrong = (((0, depth), "the decoder has 1"), ((2,), "the encoder has 1"), ((0, 99), "ascending depths"))
    for taps, message in wrong:
        with pytest.raises(UserError, match=f"--adapter.taps .*{message}"):
            SherlOptions(taps=taps).build_stacks(stage_hf(tiny.tiny_t5()), stage_t5_decoder(tiny.tiny_t5()))


def test_cells_are_read_without_late_blocks_unless_asked_for() -> None:
    assert SherlOptions().for_cells() == SherlOptions(late=0)
    for asked in (SherlOptions(late=2), SherlOptions(handoff="pooled"), SherlOptions(base_gate=True)):
        assert asked.for_cells() is asked
    text, gated = SherlOptions(late=0, reduction=8, dropout=0.0), SherlOptions(flavour="gated", late=0, reduction=8)
    assert SherlOptions().for_fusion() == text
    assert SherlOptions(flavour="gated").for_fusion() == gated
    assert SherlOptions().for_answers() == SherlOptions(flavour="gated").for_answers() == gated
    assert SherlOptions(flavour="text").for_answers() == replace(text, flavour="text")
    # A dropout that flavour gated does not have.
    assert SherlOptions(dropout=0.2).for_answers() == replace(text, dropout=0.2)
    assert SherlOptions(handoff="pooled").for_answers() == SherlOptions(handoff="pooled")
    assert SherlOptions(handoff="pooled").for_fusion() == SherlOptions(handoff="pooled")


@pytest.mark.parametrize("changes", [{"handoff": "pooled"}, {"base_gate": True}])
def test_pooled_handoff_refuses_a_head_that_reads_tokens(changes: dict) -> None:
    with pytest.raises(UserError, match="this head reads tokens"):
        SherlOptions(**changes).build(prepared("vit"), "tokens")


def test_too_early_a_route_says_how_to_mend_it() -> None:
    with pytest.raises(UserError, match=r"--adapter.taps \[1\]: SHERL needs 2 taps or more; give two depths from 0..1"):
        build("resnet", "conv", late=6)


def test_single_tap_in_the_joint_space() -> None:
    model, x = wake_(build("vit", "pooled", taps=(3,))), TOWERS["vit"][1]()
    assert all(train(model, x, steps=2).values())
