"""MeZO (Malladi et al., NeurIPS 2023) and DiZO (arXiv:2502.03304): training with forward passes alone.

A step perturbs all trained tensors along a random direction z, evaluates the loss on both sides, and moves along z by
the slope. Nothing is saved for backward, so memory is that of inference. z is a function of seed, step and the tensor's
name: a run is recorded by one number per step, processes exchange one number per step, and a checkpoint replays the
numbers from the start.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlkit.engine.directions import seed_of
from vlkit.engine.optim import is_decayed
from vlkit.errors import UserError
from vlkit.memory import StepMemory, peak_bytes, time_ratio

Loss = Callable[[], float]

# Key and value maps of attentions, by the names that libraries give them; some hold query, key and value in one.
_KEY_VALUE = re.compile(
    r"\.(k|v|k_proj|v_proj|key|value|k_lin|v_lin|key_proj|value_proj|qkv)\.weight$|\.in_proj_weight$"
)


@dataclass
class ZerothOptions:
    """Options of ``--optimizer mezo``."""

    eps: float = 1e-3
    """Size of the perturbation (published: 1e-3 for all weights, 1e-2 for LoRA)."""
    clip: float = 0.0
    """Largest slope as a multiple of the median of the last 100; 0 = no limit."""
    project_every: int = 0
    """DiZO: steps between searches for the distance of each tensor from its start (published: 50 to 400); 0 = plain
    MeZO. A search costs 2 * project_steps forward passes and a copy of the projected tensors."""
    project_steps: int = 10
    """Steps of a search, each on a fresh batch."""
    project_eps: float = 0.05
    """Size of the perturbation of a distance (published: 0.1 for all weights, 0.05 for LoRA)."""
    project_lr: float = 1.0
    """Step size of a search (published: 2 for all weights, 1 for LoRA)."""
    project_range: float = 0.2
    """A search changes a distance by at most this share (published: 0.1 to 0.3)."""

    def __post_init__(self) -> None:
        for name in ("eps", "project_eps", "project_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--zeroth.{name} {getattr(self, name)}: must be above 0, and finite")
        if not 0 <= self.clip < float("inf") or self.project_every < 0 or self.project_steps < 1:
            raise UserError("--zeroth: clip and project_every must be 0 or more, project_steps at least 1")
        if not 0 < self.project_range < 1:
            raise UserError(f"--zeroth.project_range {self.project_range}: must be between 0 and 1")


class Mezo(torch.optim.Optimizer):
    """The optimizer. ``param_groups`` hold learning rate and weight decay as usual; there is no state per parameter.

    Args:
        parameters: name -> parameter; the names choose the directions.
        lr: learning rate.
        weight_decay: of matrices.
        options: see :class:`ZerothOptions`.
        seed: seed of the directions.

    Attributes:
        slopes: the slope of every step so far.
        distances: DiZO: step -> tensor name -> distance chosen after that step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        lr: float,
        weight_decay: float,
        options: ZerothOptions,
        seed: int,
    ) -> None:
        self._named, self.options, self.seed = dict(parameters), options, seed
        super().__init__(list(parameters.values()), {"lr": lr, "weight_decay": weight_decay})
        self.slopes: list[float] = []
        self.distances: dict[int, dict[str, float]] = {}
        self._start: dict[str, Tensor] = {}

    def remember_start(self) -> None:
        """DiZO: keep the current values of the tensors that it projects."""
        if self.options.project_every:
            lora = [name for name in self._named if ".lora_" in name]
            named = [name for name in self._named if _KEY_VALUE.search(f".{name}") and ".base." in f".{name}"]
            chosen = lora or named or list(self._named)
            self._start = {name: self._named[name].detach().clone() for name in chosen}

    @property
    def start_bytes(self) -> int:
        """Bytes of the tensors that DiZO keeps."""
        return sum(tensor.nbytes for tensor in self._start.values())

    # --- a step ---

    @torch.no_grad()
    def estimate(self, loss: Loss) -> tuple[float, float]:
        """Losses at ``+ eps z`` and ``- eps z`` for the next step; the weights end at ``- eps z``."""
        self._move(self.options.eps)
        above = loss()
        self._move(-2 * self.options.eps)
        return above, loss()

    def slope_of(self, above: float, below: float) -> float:
        """The slope along z from both losses, clipped."""
        slope = (above - below) / (2 * self.options.eps)
        if self.options.clip and len(self.slopes) >= 10:
            limit = self.options.clip * statistics.median(abs(old) for old in self.slopes[-100:])
            slope = max(-limit, min(limit, slope))
        return slope

    @torch.no_grad()
    def apply(self, slope: float) -> None:
        """Go back from ``- eps z`` and take the step."""
        (group,), step = self.param_groups, len(self.slopes)
        for name, parameter in self._named.items():
            z = self._direction(step, name)
            parameter.add_(z, alpha=self.options.eps)
            self._descend(name, parameter, z, slope, group["lr"], group["weight_decay"])
        self.slopes.append(slope)

    def cancel(self) -> None:
        """Go back from ``- eps z`` without a step."""
        with torch.no_grad():
            self._move(self.options.eps)

    def _descend(self, name: str, parameter: nn.Parameter, z: Tensor, slope: float, lr: float, decay: float) -> None:
        if decay and is_decayed(name, parameter):
            parameter.mul_(1 - lr * decay)
        parameter.add_(z, alpha=-lr * slope)

    def _move(self, factor: float) -> None:
        for name, parameter in self._named.items():
            parameter.add_(self._direction(len(self.slopes), name), alpha=factor)

    def _direction(self, step: int, name: str) -> Tensor:
        """z of one tensor: standard normal."""
        parameter = self._named[name]
        generator = torch.Generator(parameter.device).manual_seed(seed_of(self.seed, step, name))
        return torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)

    # --- DiZO ---

    @property
    def projection_due(self) -> bool:
        """Whether a search follows the last step."""
        every = self.options.project_every
        return every > 0 and len(self.slopes) % every == 0

    @torch.no_grad()
    def project(self, losses: Iterator[Loss], average: Callable[[float], float]) -> None:
        """Search how far each projected tensor should be from its start.

        Args:
            losses: one loss per search step, each on a fresh batch.
            average: mean of a number over the processes.
        """
        options, moved = self.options, self._moved()
        limits = {
            name: ((1 - options.project_range) * far, (1 + options.project_range) * far, far)
            for name, (_, far) in moved.items()
        }
        found = {name: far for name, (_, far) in moved.items()}
        for repeat in range(options.project_steps if moved else 0):
            loss = next(losses)
            draws = {name: self._draw(repeat, name, options.project_range * limits[name][2]) for name in found}
            sides = []
            for sign in (1.0, -1.0):
                self._place(moved, {n: found[n] + sign * options.project_eps * draws[n] for n in found}, 0.0)
                sides.append(loss())
            slope = average((sides[0] - sides[1]) / (2 * options.project_eps))
            for name, (low, high, far) in limits.items():
                wanted = found[name] - options.project_lr * far * slope * draws[name]
                found[name] = max(low, min(high, wanted))
        self._place(moved, found, 1e-8)
        self.distances[len(self.slopes)] = found

    def _moved(self) -> dict[str, tuple[Tensor, float]]:
        """Tensors that left their start: name -> difference, distance."""
        found = {}
        for name, start in self._start.items():
            difference = self._named[name].detach() - start
            far = float(difference.norm())
            if far > 0:
                found[name] = difference, far
        return found

    def _place(self, moved: Mapping[str, tuple[Tensor, float]], distances: Mapping[str, float], floor: float) -> None:
        for name, (difference, far) in moved.items():
            self._named[name].copy_(self._start[name] + distances[name] / (far + floor) * difference)

    def _draw(self, repeat: int, name: str, limit: float) -> float:
        """A standard normal number, so small that the perturbation stays within ``limit``."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, len(self.slopes), "distance", repeat, name))
        draw = float(torch.randn((), generator=generator, dtype=torch.float64))
        most = limit / self.options.project_eps
        return max(-most, min(most, draw))

    # --- checkpoints ---

    def record(self) -> dict[str, Tensor]:
        """Everything besides the start that :meth:`replay` needs: a number per step, and DiZO's distances."""
        found = {"mezo/slopes": torch.tensor(self.slopes, dtype=torch.float64)}
        for step, distances in self.distances.items():
            found |= {
                f"mezo/distance {step} {name}": torch.tensor(far, dtype=torch.float64)
                for name, far in distances.items()
            }
        return found

    @torch.no_grad()
    def replay(self, record: Mapping[str, Tensor], lr_of: Callable[[int], float], seen: Callable[[int], None]) -> None:
        """Take the recorded steps again, from the start, without a forward; weights come out bit for bit.

        Args:
            record: result of :meth:`record`.
            lr_of: learning rate of a 0-based step.
            seen: called with the number of steps done after each.
        """
        kept: dict[int, dict[str, float]] = {}
        for key, far in record.items():
            if key.startswith("mezo/distance "):
                _, step, name = key.split(" ", 2)
                kept.setdefault(int(step), {})[name] = float(far)
        for step, slope in enumerate(record["mezo/slopes"].tolist()):
            self.param_groups[0]["lr"] = lr_of(step)
            self._move(self.options.eps)  # the same additions, for the same rounding
            self._move(-2 * self.options.eps)
            self.apply(slope)
            if self.projection_due:
                self.distances[step + 1] = kept.get(step + 1, {})
                self._place(self._moved(), self.distances[step + 1], 1e-8)
            seen(step + 1)

    def step(self, closure: Callable[[], float] | None = None) -> float:  # type: ignore[override]
        """One whole step in one process: two losses and the update; returns their mean."""
        assert closure is not None, "MeZO needs the loss"
        above, below = self.estimate(closure)
        self.apply(self.slope_of(above, below))
        return (above + below) / 2


def measure_zeroth_step(
    model: nn.Module, loss: Callable[[], Tensor], options: ZerothOptions, device: torch.device, timed: int = 3
) -> StepMemory:
    """Memory and time of one step, measured; the weights change by rounding.

    Args:
        model: the model, without gradients.
        loss: runs the forward of one step.
        options: see :class:`ZerothOptions`.
        device: of the model.
        timed: steps to time, alternating with forwards.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    mezo = Mezo(trained, 0.0, 0.0, options, seed=0)
    mezo.remember_start()
    forward = torch.no_grad()(lambda: float(loss()))
    model.eval()
    forward()  # warms up libraries
    peak = peak_bytes(lambda live: mezo.step(forward), device)
    tensors = [*model.parameters(), *model.buffers()]
    return StepMemory(
        trainable_parameters=sum(p.numel() for p in trained.values()),
        total_parameters=sum(p.numel() for p in model.parameters()),
        parameter_bytes=sum(t.nbytes for t in tensors),
        optimizer_bytes=mezo.start_bytes,
        saved_bytes=0,
        peak_bytes=peak,
        time_over_forward=time_ratio(lambda: mezo.step(forward), forward, timed) if timed else None,
    )
