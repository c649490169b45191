"""Choose the questions about a scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlkit.drawn import questions_closed as closed
from vlkit.drawn import questions_open as opened
from vlkit.drawn.graph import Scene
from vlkit.drawn.question import AnswerType, Question
from vlkit.drawn.scenes import choose

Make = Callable[[Scene, np.random.Generator], Question | None]
"""Asks a question of one form; None if the scene does not allow it."""

TEMPLATES: dict[AnswerType, dict[str, tuple[float, Make]]] = {
    "yes/no": {
        "exists": (3, closed.exists),
        "exists coloured": (2, closed.exists_coloured),
        "is coloured": (3, closed.is_coloured),
        "is patterned": (1, closed.is_patterned),
        "is related": (1.5, closed.is_related),
        "is bigger": (1, closed.is_bigger),
        "are more": (0.7, closed.are_more),
    },
    "number": {
        "count kind": (2.5, closed.count_kind),
        "count all": (1, closed.count_all),
        "count coloured": (1.2, closed.count_coloured),
        "count patterned": (0.5, closed.count_patterned),
    },
    "other": {
        "colour": (4, opened.colour_of),
        "kind": (2.5, opened.kind_of),
        "what on": (2, opened.what_is_on),
        "what related": (0.8, opened.what_is_related),
        "what outermost": (0.8, opened.what_is_outermost),
        "what of group": (1, opened.what_of_group),
        "place": (1.5, opened.place_of),
        "size": (0.8, opened.size_of),
        "pattern": (1, opened.pattern_of),
        "which bigger": (0.7, opened.which_is_bigger),
    },
}
"""Answer type -> form -> how often it is asked among those of its type, and the function that asks it."""
WANTED: tuple[AnswerType, ...] = ("yes/no", "yes/no", "number", "other", "other")


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Four or five questions of different forms: two with yes or no, one number, two others, or one less."""
    left = {answer_type: dict(forms) for answer_type, forms in TEMPLATES.items()}
    dropped = int(rng.integers(2 * len(WANTED)))
    found: dict[str, Question] = {}
    for number, answer_type in enumerate(WANTED):
        question = None if number == dropped else _ask(scene, rng, left[answer_type])
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())


def _ask(scene: Scene, rng: np.random.Generator, forms: dict[str, tuple[float, Make]]) -> Question | None:
    """A question of one of ``forms``; removes that form and those that the scene does not allow."""
    while forms:
        name = choose(rng, forms, [weight for weight, _ in forms.values()])
        question = forms.pop(name)[1](scene, rng)
        if question is not None:
            return question
    return None
