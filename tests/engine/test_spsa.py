"""SPSA-GC beyond the golden file: directions, interruption, one-sided estimates, wrong options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlkit.engine.spsa import Spsa, SpsaOptions
from vlkit.errors import UserError

GOAL = torch.linspace(-1, 1, 12, dtype=torch.float64)


def loss_at(w: Tensor) -> float:
    return float((w - GOAL).square().mean())


def start(**options: object) -> Spsa:
    return Spsa(torch.zeros(12, dtype=torch.float64), SpsaOptions(**options), seed=5)


def test_directions_are_never_near_zero_and_belong_to_their_place() -> None:
    run = start()
    one = run.direction(3, 1)
    assert one.abs().min() >= 0.5 and one.abs().max() <= 1.0 and {-1.0, 1.0} == set(one.sign().tolist())
    assert torch.equal(one, start().direction(3, 1))
    others = [run.direction(3, 2), run.direction(4, 1), Spsa(run.weights, run.options, seed=6).direction(3, 1)]
    assert all(not torch.equal(one, other) for other in others)


@pytest.mark.parametrize("options", [{}, {"one_sided": True}, {"correction": False}, {"averages": 1}])
def test_minimises_and_asks_as_often_as_it_says(options: dict[str, object]) -> None:
    run, asked = start(a=0.3, **options), 0

    def counted(w: Tensor) -> float:
        nonlocal asked
        asked += 1
        return loss_at(w)

    for _ in range(60):
        run.advance(counted)
    assert asked == 60 * run.options.evaluations
    assert loss_at(run.weights) < 0.25 * loss_at(torch.zeros(12))


@pytest.mark.parametrize("options", [{}, {"one_sided": True}])
@pytest.mark.parametrize("answers", range(1, 18))
def test_an_interrupted_run_goes_on_with_the_missing_answer(options: dict[str, object], answers: int) -> None:
    """Whichever evaluation fails, the finished ones are not asked for again and nothing changes."""
    whole = start(**options, averages=3)
    for _ in range(3):
        whole.advance(loss_at)
    asked: list[Tensor] = []

    def failing(w: Tensor) -> float:
        if len(asked) == answers:
            raise OSError
        asked.append(w)
        return loss_at(w)

    run = start(**options, averages=3)
    with pytest.raises(OSError):
        for _ in range(10):
            run.advance(failing)
    again = start(**options, averages=3)
    again.restore({name: tensor.clone() for name, tensor in run.state().items()})

    def going_on(w: Tensor) -> float:
        asked.append(w)
        return loss_at(w)

    while again.step < 3:
        again.advance(going_on)
    if answers <= 3 * again.options.evaluations:
        assert torch.equal(again.weights, whole.weights) and again.loss == whole.loss
        assert len(asked) == 3 * again.options.evaluations


def test_gains() -> None:
    options = SpsaOptions(a=0.5, c=0.02, o=2.0, alpha=0.6, gamma=0.3)
    assert options.step_size(4) == pytest.approx(0.5 / 6**0.6)
    assert options.perturbation(4) == pytest.approx(0.02 / 4**0.3)


@pytest.mark.parametrize(("name", "value"), [("a", 0.0), ("c", -1.0), ("b1", 1.0), ("averages", 0), ("gamma", -0.1)])
def test_wrong_options_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--spsa\.{name} "):
        SpsaOptions(**{name: value})
