"""Captions of the pre-training domain: basic words, few frames. Frozen: the embedded base was trained on it."""

from __future__ import annotations

import numpy as np

from vlkit.drawn.graph import Scene, Thing, place, relation
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import FAMILIAR, plural, with_article

OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "we see ")
PLACES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
RELATIONS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "on": "on",
}
DETAILS = (0, 1, 2, 3)


def caption_pretrain(scene: Scene, rng: np.random.Generator, detail: int) -> str:
    """A caption at one level of detail, lower case, true of the scene.

    Levels: 0 kinds; 1 colours and kinds; 2 colours, kinds, and a relation or places; 3 size, colour, pattern, kind and
    place of every thing.
    """
    order = [int(i) for i in rng.permutation(len(scene.things))]
    if detail == 2 and len(order) > 1 and rng.random() < 0.7:
        text = _related(scene, rng, order)
        if text is not None:
            return choose(rng, OPENINGS) + text
    phrases = []
    for i in order:
        thing = scene.things[i]
        phrase = with_article(_name(thing, rng, detail))
        phrases.append(f"{phrase} {PLACES[place(thing)]}" if detail >= 2 else phrase)
    text = _counted(scene, detail) if detail < 2 else None
    text = text or _join(phrases)
    if detail < 3 and scene.background.colour and rng.random() < 0.12:
        text += f" on {with_article(scene.background.colour)} background"
    return choose(rng, OPENINGS) + text


def _counted(scene: Scene, detail: int) -> str | None:
    """``two red cars`` if all things have one kind (and one colour, if colours are mentioned)."""
    first, *others = scene.things
    alike = all(t.kind == first.kind and (detail == 0 or t.colour == first.colour) for t in others)
    if not others or not alike:
        return None
    number = {2: "two", 3: "three"}.get(len(scene.things), "many")
    return " ".join([number, *([first.colour] if detail else []), plural(first.kind)])


def _related(scene: Scene, rng: np.random.Generator, order: list[int]) -> str | None:
    """Two things and their relation, then the third, if there is one, with its place."""
    for i in order:
        for j in order:
            word = relation(scene, i, j) if i != j else None
            if word is None or (scene.on and (i, j) not in scene.on and (j, i) not in scene.on):
                continue
            first, second = (with_article(_name(scene.things[k], rng, 1)) for k in (i, j))
            rest = [k for k in order if k not in (i, j)]
            tail = "".join(
                f" and {with_article(_name(scene.things[k], rng, 1))} {PLACES[place(scene.things[k])]}" for k in rest
            )
            return f"{first} {RELATIONS[word]} {second}{tail}"
    return None


def _name(thing: Thing, rng: np.random.Generator, detail: int) -> str:
    kind = thing.kind
    if kind in FAMILIAR and rng.random() < 0.06:
        kind = choose(rng, FAMILIAR[kind])
    words = []
    if detail == 3 or (detail in (1, 2) and rng.random() < 0.25):
        words.append(thing.size)
    if detail > 0:
        words.append(thing.colour)
    if thing.pattern != "plain" and (detail == 3 or rng.random() < 0.5):
        words.append(thing.pattern)
    return " ".join([*words, kind])


def _join(phrases: list[str]) -> str:
    if len(phrases) < 3:
        return " and ".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
