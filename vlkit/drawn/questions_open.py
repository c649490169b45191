"""Questions answered by a word: a colour, a kind, a place, a size, a pattern or one of two things."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vlkit.drawn.graph import Scene, place
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.question import ORDER, Question, any_order, related_pairs
from vlkit.drawn.refer import APART, RELATION_WORDS, kind_name, named, stands
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import plural


def colour_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What color is the cat? What color are the stars?"""
    for i in any_order(scene, rng):
        thing = scene.things[i]
        alike = [other for other in scene.things if other.kind == thing.kind]
        if len(alike) > 1 and len({(t.colour, t.shade) for t in alike}) == 1:
            text = f"What color are the {plural(kind_name(thing.kind, rng))}?"
            return Question("colour", text, thing.colour, "colour", thing)
        phrase = named(scene, i, rng, without="colour")
        if phrase is not None:
            return Question("colour", f"What color is the {phrase.words}?", thing.colour, "colour", thing)
    return None


def kind_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What is the red thing?"""
    for i in any_order(scene, rng):
        phrase = named(scene, i, rng, without="kind")
        if phrase is not None:
            return _kind_question("kind", f"What is the {phrase.words}?", scene, i)
    return None


def what_is_on(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What is on the table?"""
    if not scene.on:
        return None
    i, j = scene.on[0]
    landmark = named(scene, j, rng)
    return _kind_question("what on", f"What is on the {landmark.words}?", scene, i) if landmark is not None else None


def what_is_related(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What is above the cat? Only if exactly one thing fits."""
    for i, j, kind in related_pairs(scene, rng):
        if any(stands(scene, k, j, kind) is not False for k in range(len(scene.things)) if k != i):
            continue
        landmark = named(scene, j, rng)
        if kind != "on" and landmark is not None:
            text = f"What is {choose(rng, RELATION_WORDS[kind])} the {landmark.words}?"
            return _kind_question("what related", text, scene, i)
    return None


def what_is_outermost(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What is furthest left?"""
    if len(scene.things) < 2:
        return None
    sides = {"furthest left": ("x", 1), "furthest right": ("x", -1), "highest": ("y", 1), "lowest": ("y", -1)}
    words = choose(rng, sides)
    axis, direction = sides[words]
    first, second, *_ = sorted(range(len(scene.things)), key=lambda i: direction * getattr(scene.things[i], axis))
    if abs(getattr(scene.things[first], axis) - getattr(scene.things[second], axis)) < APART:
        return None
    return _kind_question("what outermost", f"What is {words}?", scene, first)


def what_of_group(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What animal is in the image?"""
    groups: dict[str, set[str]] = {}
    for thing in scene.things:
        groups.setdefault(KINDS[thing.kind].group, set()).add(thing.kind)
    single = [group for group in ("animal", "plant", "shape", "toy", "vehicle") if len(groups.get(group, ())) == 1]
    if not single:
        return None
    group = choose(rng, single)
    i = next(i for i, thing in enumerate(scene.things) if KINDS[thing.kind].group == group)
    return _kind_question("what of group", f"What {group} is in the picture?", scene, i)


def place_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where is the cat?"""
    for i in any_order(scene, rng):
        thing = scene.things[i]
        clear = all(abs(at - limit) > 0.03 for at in (thing.x, thing.y) for limit in (0.38, 0.62))
        phrase = named(scene, i, rng) if clear else None
        if phrase is not None and not _says_place(phrase.words):
            return Question("place", f"Where is the {phrase.words}?", place(thing), "place")
    return None


def size_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What size is the cat?"""
    for i in any_order(scene, rng):
        phrase = named(scene, i, rng, without="size")
        if phrase is not None:
            text = choose(rng, ("What size is the {}?", "How big is the {}?")).format(phrase.words)
            return Question("size", text, scene.things[i].size, "size")
    return None


def pattern_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What pattern does the cat have? Plain things are asked about less often than they occur."""
    for i in any_order(scene, rng):
        pattern = scene.things[i].pattern
        phrase = named(scene, i, rng, without="pattern") if pattern != "plain" or rng.random() < 0.2 else None
        if phrase is not None:
            return Question("pattern", f"What pattern does the {phrase.words} have?", pattern, "pattern")
    return None


def which_is_bigger(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which is bigger, the cat or the star?"""
    kinds = [kind for kind, count in Counter(thing.kind for thing in scene.things).items() if count == 1]
    sizes = {thing.kind: ORDER.index(thing.size) for thing in scene.things}
    pairs = [(a, b) for a in kinds for b in kinds if sizes[a] > sizes[b]]
    if not pairs:
        return None
    big, small = choose(rng, pairs)
    word, answer, wrong = choose(rng, (("bigger", big, small), ("smaller", small, big)))
    first, second = (big, small) if rng.random() < 0.5 else (small, big)
    text = f"Which is {word}, the {first} or the {second}?"
    return Question("which bigger", text, answer, "choice", wrong=(wrong,))


def _kind_question(template: str, text: str, scene: Scene, i: int) -> Question:
    return Question(template, text, scene.things[i].kind, "kind", scene.things[i])


def _says_place(words: str) -> bool:
    return any(word in words for word in ("left", "right", "top", "upper", "bottom", "lower", "highest", "lowest"))
