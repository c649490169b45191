"""Every method on every base family, for each view a head can read: what any adapter must do."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from helpers.towers import TEXT, build, prepared, train, view
from helpers.towers import TOWERS as ALL_TOWERS
from vlkit.adapters import ADAPTERS, AdaptedEncoder, trained_state
from vlkit.adapters.base import Plain
from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.facts import kinds_with
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.s2a import S2aOptions
from vlkit.adapters.side_attention import SideAttentionOptions
from vlkit.adapters.synqt import SynqtOptions
from vlkit.adapters.unipt.options import UniptOptions
from vlkit.adapters.vqt import VqtOptions
from vlkit.errors import UserError

TOWERS = {name: tower for name, tower in ALL_TOWERS.items() if name != "convnext"}
TUNED = kinds_with("trains_base")
# Method -> base families it refuses, and view -> methods that refuse it.
REFUSED_TOWERS = {kind: {"resnet"} for kind in ("lst", "vqt", "synqt", "side_attention")} | {"bitfit": {"t5"}}
REFUSED_VIEWS = {"tokens": {"vqt", "synqt"}, "pooled": set()}
# A softmax ignores what all it compares have in common.
NO_GRADIENT = {
    "unipt": r"confidence\.bias$",
    "lst": r"blocks\..*(key\.bias|in_proj_bias)$",  # the keys' part of it has none
    "synqt": r"attention\.key\.up\.bias$",
}
OTHER_OPTIONS: dict[str, Any] = {
    "unipt joint": UniptOptions(flavour="joint"),
    "unipt mdetr": UniptOptions(flavour="mdetr", init="published"),
    "unipt taps": UniptOptions(taps=(0, 1, 3), handoff="tokens"),
    "lst keep": LstOptions(keep=(0, 2), gate="none"),
    "lst after": LstOptions(gate="linear", after=True, gate_steps=2),
    "lst one": LstOptions(gate="one", start="random", init="published"),
    "dtl late": DtlOptions(late=1, rank=3),
    "vqt mean": VqtOptions(queries=3, combine="mean"),
    "vqt weighted": VqtOptions(queries=3, combine="weighted", layers=(0, 2)),
    "vqt attention": VqtOptions(queries=2, combine="attention", dropout=0.0),
    "synqt published": SynqtOptions(queries=2, feat_scale=1.0, init="published"),
    "s2a side": S2aOptions(bias=False, prompts=0, layers=(1, 2)),
    "s2a deep prompts": S2aOptions(bias=False, rank=0, deep=True, prompts=2, saved="fp32"),
    "side attention": SideAttentionOptions(gap=3, depth=2, rank=4, lean=False),
    "side attention mixer": SideAttentionOptions(block="mixer", gap=2, tap_dtype="bf16"),
}
PADDED = ("unipt", "lst", "dtl", "vqt", "synqt", "side_attention", "s2a")
CASES = [(kind, tower, reads) for kind in ADAPTERS for tower in TOWERS for reads in ("pooled", "tokens")]
BUILT = [
    (kind, tower, reads)
    for kind, tower, reads in CASES
    if tower not in REFUSED_TOWERS.get(kind, ()) and kind not in REFUSED_VIEWS[reads]
]
FROZEN = [case for case in BUILT if case[0] not in TUNED]
every_case = pytest.mark.parametrize(("kind", "tower", "reads"), BUILT)
every_frozen = pytest.mark.parametrize(("kind", "tower", "reads"), FROZEN)


@every_case
def test_trains_saves_and_loads(kind: str, tower: str, reads: str) -> None:
    model, x = build(ADAPTERS[kind](), tower, reads), TOWERS[tower][1]()
    base = {name: tensor.clone() for name, tensor in prepared(tower).state_dict().items()}
    shape = view(prepared_linear(tower), x, reads).shape
    unused = train(model, x, reads)

    assert view(model, x, reads).shape == shape
    if kind in TUNED:
        trained = model if kind == "s2a" else model.base  # S2A also has parts outside the base, T5 no biases in it
        assert any(p.requires_grad for p in trained.parameters())
    else:
        assert all(torch.equal(tensor, base[name]) for name, tensor in model.base.state_dict().items())
        assert all(name.startswith("adapter.") for name, p in model.named_parameters() if p.requires_grad)
        pattern = NO_GRADIENT.get(kind)
        assert {name for name in unused if pattern is None or not re.search(pattern, name)} == set()

    other = build(ADAPTERS[kind](), tower, reads, seed=7)
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    _, unexpected = other.load_state_dict(state, strict=False)
    assert unexpected == []
    with torch.no_grad():
        # peft adds its updates to an attention's weights and takes them off again: the base's are then rounded anew.
        limit = 1e-5 if kind == "lora" else 0.0
        torch.testing.assert_close(view(other, x, reads), view(model, x, reads), rtol=0, atol=limit)


@cache
def prepared_linear(tower: str) -> nn.Module:
    return build(ADAPTERS["linear"](), tower)


@pytest.mark.parametrize(("kind", "tower", "reads"), [case for case in CASES if case not in BUILT])
def test_what_cannot_be_adapted_is_refused_with_a_mend(kind: str, tower: str, reads: str) -> None:
    with pytest.raises(UserError) as raised:
        build(ADAPTERS[kind](), tower, reads)
    assert "\n" not in str(raised.value)
    assert re.search(r"use|choose another kind", str(raised.value))


@every_frozen
def test_starts_at_the_base(kind: str, tower: str, reads: str) -> None:
    model, x = build(ADAPTERS[kind](), tower, reads), TOWERS[tower][1]()
    with torch.no_grad():
        torch.testing.assert_close(model(x).pooled, model.base(x), rtol=0, atol=3e-6)


@every_frozen
def test_early_route_keeps_no_activations(kind: str, tower: str, reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(ADAPTERS[kind](), tower, reads), TOWERS[tower][1]()
    saved: list[int] = []
    count_of: dict[int, int] = {}
    block = model.base.block

    def counted(i: int, stream: Any) -> Any:
        before = len(saved)
        result = block(i, stream)
        count_of[i] = len(saved) - before
        return result

    monkeypatch.setattr(model.base, "block", counted)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(0) or t, lambda t: t):
        view(model, x, reads)

    assert set(count_of) == set(range(model.base.depth))
    assert {count_of[i] for i in range(model.stop)} <= {0}
    if isinstance(model.runner, Plain):  # else the late route keeps nothing either, and runs again
        # DTL first writes behind the first late block.
        assert model.adapter.late <= (kind == "dtl") or count_of[model.base.depth - 1] > 0


@pytest.mark.parametrize("reads", ["pooled", "tokens"])
@pytest.mark.parametrize(
    ("kind", "tower"),
    [(k, t) for k in PADDED for t in TEXT if (k, t, "pooled") in BUILT],
)
def test_padding_changes_nothing(kind: str, tower: str, reads: str) -> None:
    if kind in REFUSED_VIEWS[reads]:
        reads = "pooled"
    model, ids = build(ADAPTERS[kind](), tower, reads), TOWERS[tower][1]()
    train(model, ids, reads)
    with torch.no_grad():
        together = view(model, ids, reads)
        for row, length in enumerate((5, 9, 12)):
            alone = view(model, ids[row : row + 1, :length], reads)[0]
            expected = together[row] if reads == "pooled" else together[row, :length]
            torch.testing.assert_close(expected, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_other_options_train(name: str) -> None:
    options = OTHER_OPTIONS[name]
    model, x = build(options, "vit"), TOWERS["vit"][1]()
    base = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    unused = train(model, x, "pooled")

    pattern = NO_GRADIENT.get(options.kind, "$^")
    assert {n for n in unused if not re.search(pattern, n)} == set()
    assert all(torch.equal(tensor, base[n]) for n, tensor in model.base.state_dict().items())
    other = build(options, "vit", seed=7)
    other.load_state_dict(trained_state(model), strict=False)
    assert torch.equal(other(x).pooled, model(x).pooled)


@every_frozen
def test_cached_route_equals_the_forward(kind: str, tower: str, reads: str) -> None:
    model, x = build(ADAPTERS[kind](), tower, reads), TOWERS[tower][1]()
    train(model, x, reads, steps=1)
    assert isinstance(model, AdaptedEncoder)
    with torch.no_grad():
        torch.testing.assert_close(getattr(model.finish(*model.read(x)), reads), view(model, x, reads))
