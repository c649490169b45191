"""8-bit AdamW and APOLLO: they train, keep little state, and go on exactly after a restore."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from vlkit.engine.checkpoint import optimizer_tensors, restore_optimizer
from vlkit.engine.library_optimizers import APOLLO_GAP
from vlkit.engine.optim import make_optimizer
from vlkit.errors import UserError
from vlkit.memory import measure_step

KINDS = {"adamw8bit": "bitsandbytes", "apollo": "apollo_torch"}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Unflatten(1, (4, 4, 4))
    )


def make(net: nn.Module, kind: str) -> torch.optim.Optimizer:
    return make_optimizer(dict(net.named_parameters()), 1e-2, 0.1, kind)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> float:
    for step in range(first, first + count):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        loss = (net(x).flatten(1) - x.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_trains(kind: str) -> None:
    pytest.importorskip(KINDS[kind])
    net = model()
    optimizer = make(net, kind)
    first = train(net, optimizer, 0, 1)
    assert train(net, optimizer, 1, 60) < 0.8 * first
    assert all(
        group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0.0) for group in optimizer.param_groups
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [3, APOLLO_GAP, APOLLO_GAP + 1])
def test_goes_on_exactly(kind: str, at: int) -> None:
    """Also where APOLLO draws new projections."""
    pytest.importorskip(KINDS[kind])
    whole = model()
    optimizer = make(whole, kind)
    train(whole, optimizer, 0, at)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, named(whole)).items()}
    again = model()
    again.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    other = make(again, kind)
    restore_optimizer(other, named(again), tensors)
    for net, own in ((whole, optimizer), (again, other)):
        train(net, own, at, 3)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def named(net: nn.Module) -> dict[str, nn.Parameter]:
    return dict(net.named_parameters())


@pytest.mark.parametrize(("kind", "share"), [("adamw8bit", 0.3), ("apollo", 0.8)])
def test_keeps_less_state(kind: str, share: float) -> None:
    pytest.importorskip(KINDS[kind])
    x = torch.randn(4, 64)

    def state(kind: str) -> int:
        net = model()
        return measure_step(net, lambda: net(x).square().mean(), make(net, kind)).optimizer_bytes

    assert state(kind) < share * state("adamw")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_library_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [KINDS[kind], *(name for name in sys.modules if name.startswith(f"{KINDS[kind]}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--optimizer {kind}: {KINDS[kind].replace('_', '-')} is not installed"):
        make(model(), kind)
