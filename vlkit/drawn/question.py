"""A question, and helpers for questions of every form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from vlkit.drawn.graph import Relation, Scene, Thing, relation

AnswerType = Literal["yes/no", "number", "other"]
Matter = Literal["yes/no", "number", "colour", "kind", "place", "size", "pattern", "choice"]
ORDER = ("small", "medium", "large")
"""Sizes from the smallest on."""


@dataclass(frozen=True)
class Question:
    """A question with its true answer.

    Attributes:
        template: key of ``TEMPLATES`` in :mod:`vlkit.drawn.questions`.
        text: as asked, with a capital and a question mark.
        answer: lower case; numbers as digits.
        matter: what the answer is about; decides how people may disagree.
        thing: the thing whose colour or kind is asked for, if there is one.
        wrong: an answer that a careless reader could give, if the question offers one.
    """

    template: str
    text: str
    answer: str
    matter: Matter
    thing: Thing | None = None
    wrong: tuple[str, ...] = ()

    @property
    def answer_type(self) -> AnswerType:
        """Answer type as in VQA v2."""
        return self.matter if self.matter in ("yes/no", "number") else "other"


def any_order(scene: Scene, rng: np.random.Generator) -> list[int]:
    """The things in random order."""
    return [int(i) for i in rng.permutation(len(scene.things))]


def related_pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int, Relation]]:
    """Pairs with a clear relation, in random order."""
    pairs = [(i, j, relation(scene, i, j)) for i in any_order(scene, rng) for j in any_order(scene, rng) if i != j]
    return [(i, j, cast(Relation, kind)) for i, j, kind in pairs if kind is not None]
