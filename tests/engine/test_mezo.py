"""MeZO and DiZO: the estimate, replay, several processes, memory, and distances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.toy_run import ToyConfig, main
from vlkit.engine import checkpoint
from vlkit.engine.mezo import Mezo, ZerothOptions, measure_zeroth_step
from vlkit.engine.optim import make_optimizer
from vlkit.errors import UserError
from vlkit.memory import peak_bytes


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,), "gate": ()}
    return {name: nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for name, s in shapes.items()}


def optimizer(named: dict[str, nn.Parameter], lr: float = 0.01, decay: float = 0.0, seed: int = 0, **options) -> Mezo:
    mezo = Mezo(named, lr, decay, ZerothOptions(**options), seed)
    mezo.remember_start()
    return mezo


def quadratic(named: dict[str, nn.Parameter]) -> float:
    return float(sum((p.detach().double() - i).square().sum() for i, p in enumerate(named.values())))


def values(named: dict[str, nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in named.values()]


# --- the estimate ---


def test_the_mean_of_the_estimates_is_the_gradient() -> None:
    named = parameters(dtype=torch.float64)
    wanted = torch.cat([2 * (p.detach() - i).flatten() for i, p in enumerate(named.values())])
    total, count = torch.zeros_like(wanted), 2000
    for seed in range(count):
        mezo = optimizer(named, seed=seed)
        above, below = mezo.estimate(lambda: quadratic(named))
        z = torch.cat([mezo._direction(0, name).flatten() for name in named])
        mezo.cancel()
        total += mezo.slope_of(above, below) * z / count
    # Each entry has a variance of about |gradient|^2 / count.
    assert (total - wanted).abs().max() < 4 * wanted.norm() / count**0.5


def test_a_cancelled_step_restores_the_weights() -> None:
    named = parameters()
    before = values(named)
    mezo = optimizer(named)
    mezo.estimate(lambda: 0.0)
    mezo.cancel()
    assert max(float((a - b).abs().max()) for a, b in zip(values(named), before, strict=True)) < 1e-6


def test_a_step_is_theta_minus_lr_times_slope_z_and_decay() -> None:
    named = parameters(dtype=torch.float64)
    before, mezo = values(named), optimizer(named, lr=0.1, decay=0.5)
    z = [mezo._direction(0, name) for name in named]
    mezo.step(lambda: quadratic(named))
    for old, new, direction in zip(before, values(named), z, strict=True):
        decay = 0.1 * 0.5 * old if old.ndim >= 2 else 0.0
        torch.testing.assert_close(new, old - decay - 0.1 * mezo.slopes[0] * direction, rtol=0, atol=1e-12)


def test_tables_of_biases_are_not_decayed() -> None:
    # T5's relative position biases are a matrix.
    named = {name: nn.Parameter(torch.ones(2, 2)) for name in ("q.weight", "relative_attention_bias.weight")}
    optimizer(named, lr=0.1, decay=0.5).step(lambda: 0.0)
    groups = make_optimizer(named, 0.1, 0.5).param_groups
    assert [float(p.detach().mean()) for p in named.values()] == pytest.approx([0.95, 1.0])
    assert [[p is one for one in named.values()].index(True) for group in groups for p in group["params"]] == [0, 1]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


def test_directions_belong_to_seed_step_and_name() -> None:
    named = parameters()
    mezo = optimizer(named)
    assert torch.equal(mezo._direction(2, "weight"), optimizer(named)._direction(2, "weight"))
    assert not torch.equal(mezo._direction(2, "weight"), mezo._direction(3, "weight"))
    assert not torch.equal(mezo._direction(2, "weight"), optimizer(named, seed=1)._direction(2, "weight"))
    assert not torch.equal(mezo._direction(2, "weight").flatten()[:4], mezo._direction(2, "bias"))


def test_it_minimises_and_outliers_are_clipped() -> None:
    named = parameters()
    first, mezo = quadratic(named), optimizer(named, lr=0.01, clip=3.0)
    for _ in range(300):
        mezo.step(lambda: quadratic(named))
    assert quadratic(named) < 0.1 * first
    median = sorted(map(abs, mezo.slopes[-100:]))[50]
    assert mezo.slope_of(1e9, 0.0) == pytest.approx(3 * median, rel=0.2)


# --- DiZO ---


def test_dizo_projects_the_tensors_of_lora_alone_where_there_are_any() -> None:
    def projected(*names: str) -> list[str]:
        named = {name: nn.Parameter(torch.ones(2, 2)) for name in names}
        return list(optimizer(named, project_every=1)._start)

    lora = ("image.base.q_proj.lora_a", "text.base.v_proj.lora_b")
    assert projected(*lora, "head.weight", "logit_scale") == list(lora)
    assert projected("side.up", "head.weight") == ["side.up", "head.weight"]


@pytest.mark.parametrize("reach", [0.1, 0.3])
def test_dizo_keeps_distances_in_range(reach: float) -> None:
    named = parameters()
    start, mezo = values(named), optimizer(named, project_every=5, project_range=reach, project_lr=50.0)
    for _ in range(5):
        mezo.step(lambda: quadratic(named))
    before = [float((p - s).norm()) for p, s in zip(values(named), start, strict=True)]
    assert mezo.projection_due
    mezo.project(iter([lambda: quadratic(named)] * 10), lambda number: number)
    after = [float((p - s).norm()) for p, s in zip(values(named), start, strict=True)]
    assert all((1 - reach) * b - 1e-5 <= a <= (1 + reach) * b + 1e-5 for a, b in zip(after, before, strict=True))
    assert after != pytest.approx(before, rel=1e-3)


def test_dizo_lowers_the_loss_of_steps_that_were_too_long() -> None:
    named = parameters()
    mezo = optimizer(named, project_every=1, project_range=0.3, project_lr=2e-3, project_steps=50)
    with torch.no_grad():  # twice as far from the start as the best point on the line
        for i, p in enumerate(named.values()):
            p.add_(2 * (i - p))
    mezo.slopes.append(0.0)
    before = quadratic(named)
    mezo.project(iter([lambda: quadratic(named)] * 50), lambda number: number)
    assert quadratic(named) < before


def test_dizo_leaves_what_did_not_move() -> None:
    named = parameters()
    before, mezo = values(named), optimizer(named, project_every=1)
    mezo.project(iter([]), lambda number: number)
    assert all(torch.equal(a, b) for a, b in zip(values(named), before, strict=True))


# --- runs ---


def run(folder: Path, **changes) -> dict[str, Tensor]:
    given = {"optimizer": "mezo", "lr": 0.01, "epochs": 3, "device": "cpu", "checkpoint_every": 1, **changes}
    main(ToyConfig(output=folder, **given))
    return load_file(folder / "weights-0.safetensors")


@pytest.mark.parametrize("zeroth", [ZerothOptions(), ZerothOptions(project_every=4, project_steps=2, clip=2.0)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_goes_on_bit_for_bit(zeroth: ZerothOptions, accumulate: int, tmp_path: Path, monkeypatch) -> None:
    whole = run(tmp_path / "whole", zeroth=zeroth, accumulate=accumulate)
    save = checkpoint.save

    def interrupted(folder: Path, state: checkpoint.State) -> None:
        save(folder, state)
        if state.progress.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", zeroth=zeroth, accumulate=accumulate)
    state = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert state is not None and not state.trained and not state.best
    assert state.optimizer["mezo/slopes"].shape == (5,)
    again = run(tmp_path / "run", zeroth=zeroth, accumulate=accumulate, resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_checkpoint_without_its_start_is_named(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    (tmp_path / "checkpoint" / "start" / "state.safetensors").unlink()
    with pytest.raises(UserError, match=r"start/state\.safetensors: is missing"):
        run(tmp_path, epochs=1, resume=True)


def test_half_precision_is_refused() -> None:
    with pytest.raises(UserError, match="--optimizer mezo --precision bf16-mixed"):
        ToyConfig(optimizer="mezo", precision="bf16-mixed")


@pytest.mark.parametrize(("name", "value"), [("eps", 0.0), ("project_range", 1.0), ("project_lr", -1.0)])
def test_wrong_options_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--zeroth\.{name} "):
        ZerothOptions(**{name: value})


# --- memory ---


def test_the_peak_is_that_of_inference() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(12)])
    x = torch.randn(512, 64)

    def loss() -> Tensor:
        return model(x).square().mean()

    found = measure_zeroth_step(model, loss, ZerothOptions(), torch.device("cpu"), timed=0)
    with torch.no_grad():
        inference = peak_bytes(lambda live: float(loss()), torch.device("cpu"))
    assert found.saved_bytes == found.optimizer_bytes == 0
    assert found.total_bytes <= 1.05 * (found.parameter_bytes + inference)
    # Backward would keep 24 activations of this size.
    assert found.peak_bytes < 4 * x.nbytes
