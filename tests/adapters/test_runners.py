"""Every way to run a route gives the same numbers: plain, in chunks, again in backward, from a cache."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.sherl_pairs import assert_same, run
from helpers.towers import TOWERS, prepared
from vlkit.adapters import ADAPTERS
from vlkit.adapters.base import AdaptedEncoder, Adapter, Plain, Runner
from vlkit.adapters.facts import kinds_with
from vlkit.adapters.lean.recompute import Lean
from vlkit.adapters.lst.method import LstOptions
from vlkit.encoders.staged import Stream


class MergesAndWrites(Adapter):
    """Changes the state that enters the late blocks, and writes behind each of them."""

    handoff = "tokens"
    layers, late = (0, 1), 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up, self.written = nn.Linear(width, 8), nn.Linear(8, width), nn.Linear(8, width)

    def reduce(self, index: int, tap: Stream) -> Tensor:
        return self.down(tap.hidden)

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        return last + self.up(reduced[0] + reduced[1])

    def late_block(self, i: int, stream: Stream, block: Callable[[Stream], Stream]) -> Stream:
        out = block(stream)
        return out.replace(hidden=out.hidden + self.written(self.down(stream.hidden)))


def models(adapter: Callable[[], Adapter], tower: str, *runners: Runner, **more: Any) -> list[AdaptedEncoder]:
    """One method with the same weights, run in several ways."""
    found = []
    for runner in runners:
        with torch.random.fork_rng():
            torch.manual_seed(4)
            made = adapter().double()
        found.append(AdaptedEncoder(deepcopy(prepared(tower)).double(), made, runner, **more).train())
    return found


def batch(tower: str) -> Tensor:
    x = TOWERS[tower][1]()
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("view", ["pooled", "tokens"])
@pytest.mark.parametrize("tower", ["vit", "clip_text", "t5"])
def test_what_is_merged_and_what_is_written_arrive_on_every_path(tower: str, view: str) -> None:
    plain, *others = models(lambda: MergesAndWrites(32), tower, Plain(), Lean(0), Lean(2))
    x = batch(tower)
    expected = run(plain, lambda: getattr(plain(x), view))
    assert expected[1]["written.weight"].abs().max() > 0
    for model in others:
        assert_same(run(model, lambda m=model: getattr(m(x), view)), expected, 1e-9)
        assert_same(run(model, lambda m=model: getattr(m.finish(*m.read(x)), view)), expected, 1e-9)


def test_writes_into_the_last_block_are_not_cut_to_the_summary_token() -> None:
    plain, lean = models(lambda: MergesAndWrites(32), "vit", Plain(), Lean(2), summary_only=True)
    x = batch("vit")
    assert not lean.summary_only
    assert_same(run(lean, lambda: lean(x).pooled), run(plain, lambda: plain(x).pooled), 1e-9)


FROZEN = [kind for kind in kinds_with("has_early_route") if kind != "sherl"]  # SHERL: test_sherl_lean.py


@pytest.mark.parametrize("tower", ["vit", "clip_text"])
@pytest.mark.parametrize("kind", FROZEN)
def test_every_method_can_run_again_in_backward(kind: str, tower: str) -> None:
    options = ADAPTERS[kind]()
    for name in {"dropout", "drop_path"} & set(vars(options)):  # drawn anew in a second run in chunks
        setattr(options, name, 0.0)
    assert_lean_is_plain(options, tower)


@pytest.mark.parametrize("gate", ["linear", "inverse"])
def test_a_scheduled_gate_moves_with_steps_and_not_with_forwards(gate: str) -> None:
    plain, lean, x = assert_lean_is_plain(LstOptions(gate=gate, gate_steps=4), "vit")
    for model in (plain, lean):
        assert {int(b) for name, b in model.named_buffers() if name.endswith("steps")} == {0}
        for module in model.modules():
            if hasattr(module, "at_step"):
                module.at_step(2)
    second = [run(model, lambda m=model: m(x).pooled) for model in (lean, plain)]
    assert_same(*second, 1e-9)


def assert_lean_is_plain(options: Any, tower: str) -> tuple[AdaptedEncoder, AdaptedEncoder, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        plain = options.build(deepcopy(prepared(tower)).double()).double().train()
    for parameter in plain.adapter.parameters():  # off the zeros that training starts at
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    lean = deepcopy(plain)
    plain.runner, lean.runner = Plain(), Lean(2)
    x = batch(tower)
    if not list(plain.adapter.parameters()):
        torch.testing.assert_close(lean(x).pooled, plain(x).pooled)
        return plain, lean, x
    assert_same(run(lean, lambda: lean(x).pooled), run(plain, lambda: plain(x).pooled), 1e-9)
    return plain, lean, x
