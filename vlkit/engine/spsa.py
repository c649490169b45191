"""SPSA with gradient correction (BlackVIP): minimise a loss that can only be evaluated.

Spall's SPSA estimates the gradient from two evaluations along a random direction; BlackVIP adds a Nesterov-like
correction. Directions are a function of seed, step and repeat: with weights, momentum and step a run goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlkit.engine.directions import seed_of
from vlkit.errors import UserError


@dataclass
class SpsaOptions:
    """Options of SPSA-GC; names and defaults are the paper's."""

    a: float = 0.01
    """Factor on the step size a / (t + o)^alpha."""
    c: float = 0.01
    """Factor on the size of the perturbation c / t^gamma."""
    o: float = 1.0
    """Offset of the step number in the step size."""
    alpha: float = 0.4
    """Power of the step number in the step size."""
    gamma: float = 0.1
    """Power of the step number in the size of the perturbation."""
    b1: float = 0.9
    """Momentum of the gradient correction."""
    averages: int = 5
    """Directions per step; each costs two evaluations of the loss."""
    correction: bool = True
    """Gradient correction (SPSA-GC); false: plain SPSA."""
    one_sided: bool = False
    """Compare with the loss at the weights themselves, which all directions share: averages + 1 evaluations instead of
    twice the averages (a suggestion of the authors that the paper did not test)."""

    def __post_init__(self) -> None:
        for name in ("a", "c"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--spsa.{name} {getattr(self, name)}: must be above 0, and finite")
        for name in ("o", "alpha", "gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--spsa.{name} {getattr(self, name)}: must be 0 or more, and finite")
        if not 0 <= self.b1 < 1:
            raise UserError(f"--spsa.b1 {self.b1}: must be at least 0 and less than 1")
        if self.averages < 1:
            raise UserError(f"--spsa.averages {self.averages}: must be at least 1")

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss per step."""
        return self.averages + 1 if self.one_sided else 2 * self.averages

    def step_size(self, step: int) -> float:
        """a_t of 1-based ``step``."""
        return self.a / (step + self.o) ** self.alpha

    def perturbation(self, step: int) -> float:
        """c_t of 1-based ``step``."""
        return self.c / step**self.gamma


class Spsa:
    """The optimizer's state; :meth:`advance` takes one step.

    If an evaluation fails, those before it are kept: calling :meth:`advance` again goes on with the one that failed.

    Args:
        weights: [n] floating point.
        options: see :class:`SpsaOptions`.
        seed: seed of the directions.

    Attributes:
        weights: the current weights.
        momentum: m of the gradient correction; None before the first step.
        step: steps done.
        repeat: finished repeats of the current step.
        total: sum of their gradient estimates.
        center: loss at the weights (one-sided estimates), once it is known.
        above: loss on one side of the current repeat, once it is known.
        loss: mean of the two losses of the last repeat, which is what the paper reports.
    """

    def __init__(self, weights: Tensor, options: SpsaOptions, seed: int = 0) -> None:
        self.weights, self.options, self.seed = weights.detach().clone(), options, seed
        self.momentum: Tensor | None = None
        self.step, self.repeat, self.loss = 0, 0, float("nan")
        self.total = torch.zeros_like(self.weights)
        self.center: float | None = None
        self.above: float | None = None

    def direction(self, step: int, repeat: int) -> Tensor:
        """[n] with magnitudes from U(0.5, 1) and random signs, for 1-based ``step`` and 0-based ``repeat``."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, repeat))
        size = 0.5 + 0.5 * torch.rand(len(self.weights), generator=generator, dtype=torch.float64)
        sign = torch.randint(0, 2, (len(self.weights),), generator=generator) * 2 - 1
        return (size * sign).to(self.weights)

    def advance(self, loss_at: Callable[[Tensor], float], directions: Sequence[Tensor] | None = None) -> float:
        """One step.

        Args:
            loss_at: weights [n] -> loss; the same examples in every call of a step.
            directions: those to use, one per repeat; default: :meth:`direction`.

        Returns:
            :attr:`loss`.
        """
        options, step = self.options, self.step + 1
        width = options.perturbation(step)
        if options.one_sided and self.center is None:
            self.center = loss_at(self.weights)
        while self.repeat < options.averages:
            delta = self.direction(step, self.repeat) if directions is None else directions[self.repeat]
            if self.above is None:
                self.above = loss_at(self.weights + width * delta)
            # With the loss at the weights themselves the distance is half as long.
            below = loss_at(self.weights - width * delta) if self.center is None else self.center
            distance = (2 if self.center is None else 1) * width * delta
            self.total += (self.above - below) / distance
            self.loss = (self.above + below) / 2
            self.repeat, self.above = self.repeat + 1, None
        self._update(self.total / options.averages, options.step_size(step))
        return self.loss

    def _update(self, gradient: Tensor, step_size: float) -> None:
        if self.options.correction:
            # m already holds the new estimate when it is added to it.
            self.momentum = gradient if self.momentum is None else self.options.b1 * self.momentum + gradient
            gradient = gradient + self.options.b1 * self.momentum
        self.weights = self.weights - step_size * gradient
        self.step, self.repeat, self.center = self.step + 1, 0, None
        self.total = torch.zeros_like(self.weights)

    # --- checkpoints ---

    def state(self) -> dict[str, Tensor]:
        """Everything that :meth:`restore` needs, as tensors."""
        found = {
            "weights": self.weights,
            "total": self.total,
            "counts": torch.tensor([self.step, self.repeat], dtype=torch.int64),
            "losses": torch.tensor([self.loss, _or_nan(self.center), _or_nan(self.above)], dtype=torch.float64),
        }
        return found if self.momentum is None else {**found, "momentum": self.momentum}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`.

        Raises:
            KeyError, ValueError: it is not a state of weights of this size.
        """
        if state["weights"].shape != self.weights.shape:
            raise ValueError(f"{len(state['weights'])} weights, not {len(self.weights)}")
        self.weights, self.total = state["weights"].to(self.weights), state["total"].to(self.weights)
        self.momentum = state["momentum"].to(self.weights) if "momentum" in state else None
        self.step, self.repeat = state["counts"].tolist()
        self.loss, *partial = state["losses"].tolist()
        self.center, self.above = (None if math.isnan(loss) else loss for loss in partial)


def _or_nan(loss: float | None) -> float:
    """NaN stands for a loss that was not evaluated."""
    return math.nan if loss is None else loss
