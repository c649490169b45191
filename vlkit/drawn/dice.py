"""Cheap random choices: one call of the generator serves many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")
BLOCK = 96


class Dice:
    """Random choices from a generator, drawn in blocks: a scene needs about a hundred, each takes a microsecond."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._values: list[float] = []

    def random(self) -> float:
        """A number in [0, 1)."""
        if not self._values:
            self._values = self._rng.random(BLOCK).tolist()
        return self._values.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self.random() * count)

    def one_of(self, options: Sequence[Option]) -> Option:
        """One of the options, each as likely."""
        return options[self.integer(len(options))]

    def weighted(self, options: Sequence[Option], weights: Sequence[float]) -> Option:
        """One of the options; the weights sum to one."""
        at = self.random()
        for option, weight in zip(options, weights, strict=True):
            at -= weight
            if at < 0:
                return option
        return options[-1]

    def shuffled(self, options: Sequence[Option]) -> list[Option]:
        """The options in a random order."""
        return sorted(options, key=lambda _: self.random())

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.random() < probability
