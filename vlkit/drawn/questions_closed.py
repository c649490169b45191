"""Questions answered by yes or no, or by a number.

Yes or no is asked only where the scene offers both a true and a false statement of the form, and a coin decides which;
so the words alone do not give the answer away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlkit.drawn.graph import Relation, Scene
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.question import ORDER, Question, any_order, related_pairs
from vlkit.drawn.refer import PATTERN_WORDS, RELATION_WORDS, kind_name, named
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import COLOURS, plural, with_article

OPPOSITE: dict[Relation, Relation] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _coin(template: str, rng: np.random.Generator, yes: Sequence[str], no: Sequence[str]) -> Question | None:
    """One of the true statements (as questions) or one of the false ones, with even odds."""
    if not yes or not no:
        return None
    truth = bool(rng.random() < 0.5)
    return Question(template, choose(rng, yes if truth else no), "yes" if truth else "no", "yes/no")


def exists(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is there a cat?"""
    present = {thing.kind for thing in scene.things}
    form = choose(rng, ("Is there {} in the picture?", "Is there {}?", "Can you see {}?"))
    yes, no = choose(rng, sorted(present)), choose(rng, [kind for kind in KINDS if kind not in present])
    texts = [form.format(with_article(kind_name(kind, rng))) for kind in (yes, no)]
    return _coin("exists", rng, texts[:1], texts[1:])


def exists_coloured(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is there a red cat? The false one names a colour and a kind that occur, but not together."""
    present = {(thing.colour, thing.kind) for thing in scene.things}
    crossed = {(a.colour, b.kind) for a in scene.things for b in scene.things} - present
    texts = [
        [f"Is there {with_article(f'{colour} {kind_name(kind, rng)}')}?" for colour, kind in sorted(pairs)]
        for pairs in (present, crossed)
    ]
    return _coin("exists coloured", rng, *texts)


def is_coloured(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is the cat red?"""
    for i in any_order(scene, rng):
        phrase = named(scene, i, rng, without="colour")
        if phrase is not None:
            own = scene.things[i].colour
            seen = sorted({thing.colour for thing in scene.things} - {own})
            other = choose(rng, seen) if seen and rng.random() < 0.5 else choose(rng, [c for c in COLOURS if c != own])
            return _coin("is coloured", rng, *([f"Is the {phrase.words} {colour}?"] for colour in (own, other)))
    return None


def is_patterned(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is the cat striped?"""
    for i in any_order(scene, rng):
        own = scene.things[i].pattern
        phrase = named(scene, i, rng, without="pattern") if own != "plain" else None
        if phrase is not None:
            other = choose(rng, [pattern for pattern in PATTERN_WORDS if pattern != own])
            texts = [[f"Is the {phrase.words} {choose(rng, PATTERN_WORDS[p])}?"] for p in (own, other)]
            return _coin("is patterned", rng, *texts)
    return None


def is_related(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is the cat left of the star?"""
    for i, j, kind in related_pairs(scene, rng):
        first, second = named(scene, i, rng), named(scene, j, rng)
        if first is None or second is None:
            continue
        true = "above" if kind == "on" else kind
        texts = [
            [f"Is the {first.words} {choose(rng, RELATION_WORDS[k])} the {second.words}?"]
            for k in (true, OPPOSITE[true])
        ]
        return _coin("is related", rng, *texts)
    return None


def is_bigger(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is the cat bigger than the star?"""
    pair = _unequal_pair(scene, rng)
    if pair is None:
        return None
    big, small = pair
    yes = (f"Is the {big} bigger than the {small}?", f"Is the {small} smaller than the {big}?")
    no = (f"Is the {small} bigger than the {big}?", f"Is the {big} smaller than the {small}?")
    return _coin("is bigger", rng, yes, no)


def are_more(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Are there more cats than stars?"""
    counts = Counter(thing.kind for thing in scene.things)
    pairs = [(a, b) for a in sorted(counts) for b in sorted(counts) if counts[a] > counts[b]]
    if not pairs:
        return None
    many, few = (plural(kind_name(kind, rng)) for kind in choose(rng, pairs))
    yes = (f"Are there more {many} than {few}?", f"Are there fewer {few} than {many}?")
    no = (f"Are there more {few} than {many}?", f"Are there fewer {many} than {few}?")
    return _coin("are more", rng, yes, no)


def _unequal_pair(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Names of a bigger and a smaller thing, without size words."""
    for i in any_order(scene, rng):
        for j in any_order(scene, rng):
            if ORDER.index(scene.things[i].size) > ORDER.index(scene.things[j].size):
                first, second = (named(scene, k, rng, without="size") for k in (i, j))
                if first is not None and second is not None:
                    return first.words, second.words
    return None


def count_kind(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many cats are there? Kinds that occur twice are preferred, otherwise the answer would mostly be 1."""
    counts = Counter(thing.kind for thing in scene.things)
    kinds = [*sorted(counts), choose(rng, [kind for kind in KINDS if kind not in counts])]
    kind = choose(rng, kinds, [{0: 0.5, 1: 0.3}.get(counts[kind], 4.0) for kind in kinds])
    form = choose(rng, ("How many {} are there?", "How many {} are in the picture?", "How many {} can you see?"))
    return Question("count kind", form.format(plural(kind_name(kind, rng))), str(counts[kind]), "number")


def count_all(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many things are there?"""
    text = choose(rng, ("How many things are there?", "How many objects are in the picture?"))
    return Question("count all", text, str(len(scene.things)), "number")


def count_coloured(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many red things are there?"""
    counts = Counter(thing.colour for thing in scene.things)
    colours = [*sorted(counts), choose(rng, [colour for colour in COLOURS if colour not in counts])]
    colour = choose(rng, colours, [{0: 0.4, 1: 0.3}.get(counts[c], 4.0) for c in colours])
    text = choose(rng, ("How many {} things are there?", "How many things are {}?")).format(colour)
    return Question("count coloured", text, str(counts[colour]), "number")


def count_patterned(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many striped things are there?"""
    counts = Counter(thing.pattern for thing in scene.things)
    patterns = sorted(PATTERN_WORDS)
    pattern = choose(rng, patterns, [{0: 0.3, 1: 0.8}.get(counts[p], 4.0) for p in patterns])
    words = choose(rng, PATTERN_WORDS[pattern])
    return Question("count patterned", f"How many {words} things are there?", str(counts[pattern]), "number")
