"""Ten answers to a question: most annotators give the true answer, some phrase it differently, miscount or make a
mistake.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlkit.data.records import ANSWERS
from vlkit.drawn.question import Question
from vlkit.drawn.refer import BROAD, tone_of
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import FAMILIAR, SHADES, SYNONYMS

DISSENT: dict[str, tuple[float, int]] = {
    "yes/no": (0.25, 2),
    "number": (0.1, 1),
    "colour": (0.5, 4),
    "kind": (0.5, 4),
    "place": (0.5, 4),
    "size": (0.5, 3),
    "pattern": (0.4, 3),
    "choice": (0.2, 2),
}
"""Subject of an answer -> how often an annotator differs, and at most how many do (a minority of ten)."""
MANY = 3
"""Numbers from here on are often miscounted by one."""
MISCOUNT = (0.55, 4)
SIMILAR_COLOURS = {
    "red": "orange",
    "orange": "red",
    "yellow": "gold",
    "green": "teal",
    "blue": "purple",
    "purple": "violet",
    "pink": "purple",
    "brown": "orange",
    "black": "dark gray",
    "white": "gray",
    "gray": "silver",
    "turquoise": "blue",
}
OTHER_WORDS = {
    "small": ("little", "tiny"),
    "medium": ("average", "normal", "large"),
    "large": ("big", "huge"),
    "plain": ("none", "solid"),
    "striped": ("stripes", "lines"),
    "dotted": ("dots", "polka dots", "spots"),
    "checkered": ("checks", "squares", "checked"),
    "top left": ("upper left", "left", "in the corner"),
    "top": ("at the top", "above"),
    "top right": ("upper right", "right", "in the corner"),
    "left": ("on the left", "left side"),
    "middle": ("center", "in the middle"),
    "right": ("on the right", "right side"),
    "bottom left": ("lower left", "left", "in the corner"),
    "bottom": ("at the bottom", "below"),
    "bottom right": ("lower right", "right", "in the corner"),
}
CONFIDENCES = ("yes", "maybe", "no")


def ten_answers(question: Question, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The ``answers`` of an annotation; most of them are the true one."""
    others = alternatives(question)
    chance, most = DISSENT[question.matter]
    if question.matter == "number" and int(question.answer) >= MANY:
        chance, most = MISCOUNT
    count = int(rng.integers(1, most + 1)) if others and rng.random() < chance else 0
    given = [choose(rng, others) for _ in range(count)] + [question.answer] * (ANSWERS - count)
    answers = []
    for number, k in enumerate(rng.permutation(ANSWERS), 1):
        answer = given[int(k)]
        weights = (0.86, 0.12, 0.02) if answer == question.answer else (0.4, 0.45, 0.15)
        confidence = choose(rng, CONFIDENCES, weights)
        answers.append({"answer": answer, "answer_confidence": confidence, "answer_id": number})
    return answers


def alternatives(question: Question) -> tuple[str, ...]:
    """Alternatives that an annotator might give instead of the true answer."""
    answer, thing = question.answer, question.thing
    if question.matter == "yes/no":
        return ("no",) if answer == "yes" else ("yes",)
    if question.matter == "number":
        return tuple(str(n) for n in (int(answer) - 1, int(answer) + 1) if n >= 0)
    if question.matter == "colour" and thing is not None:
        return (*SHADES[answer].get(tone_of(thing), ()), SIMILAR_COLOURS[answer])
    if question.matter == "kind":
        return tuple(name for name in FAMILIAR.get(answer, ()) + SYNONYMS[answer] if name not in BROAD)
    return question.wrong or OTHER_WORDS[answer]
