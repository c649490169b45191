"""Phrases that identify one thing of a scene, with the things that each phrase is true of.

Truth has three values: True (clearly so), False (clearly not) and None (arguable: a diagonal neighbour is a bit to the
left, a medium-sized thing is a bit large). A phrase names a thing only if it is clearly true of that thing and clearly
false of every other, so no reader has to guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from vlkit.drawn.graph import Relation, Scene, Thing, relation
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import FAMILIAR, SHADES, SYNONYMS

Truth = bool | None

BROAD = frozenset(
    {
        "vehicle",
        "fruit",
        "light",
        "dot",
        "block",
        "pyramid",
        "pointer",
        "fungus",
        "round spot",
        "four-sided shape",
        "leafy plant",
        "sea animal",
        "desert plant",
        "orchard fruit",
        "new moon",
    }
)
"""Other names that also fit a second kind."""
BASIC = 0.7
"""How often the basic name of a thing or colour is used."""
ARGUABLE = 0.04
"""Sideways or up-down shift (fraction of the image) below which nobody would say "left of" or "above"."""
APART = 0.1
"""Minimum shift for things in a row to have a clear order."""
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
PATTERN_WORDS = {"striped": ("striped",), "dotted": ("spotted", "dotted"), "checkered": ("checkered", "chequered")}


@dataclass(frozen=True)
class Phrase:
    """A piece of English about things of a scene.

    Attributes:
        words: as in "red star" or "red star above the cat"; no article in front.
        fits: per thing of the scene, whether it is true of it.
        head: the part of ``words`` that names the thing.
        other: the part that names another thing; empty if there is none.
    """

    words: str
    fits: tuple[Truth, ...]
    head: str
    other: str = ""

    def names(self, i: int) -> bool:
        """Whether the phrase identifies thing ``i`` and nothing else."""
        return self.fits[i] is True and all(fit is False for j, fit in enumerate(self.fits) if j != i)

    @property
    def ends_with_head(self) -> bool:
        """Whether nothing follows the noun."""
        return self.words.endswith(self.head)

    def members(self) -> list[int] | None:
        """The things it is true of; None where that is arguable for some."""
        if any(fit is None for fit in self.fits):
            return None
        return [j for j, fit in enumerate(self.fits) if fit]


def both(first: Sequence[Truth], second: Sequence[Truth]) -> tuple[Truth, ...]:
    """Truth of "first and second" per thing."""
    return tuple(
        False if a is False or b is False else (None if a is None or b is None else True)
        for a, b in zip(first, second, strict=True)
    )


def kind_name(kind: str, rng: np.random.Generator) -> str:
    """The basic name of a kind or, less often, another one that fits no second kind."""
    others = [name for name in FAMILIAR.get(kind, ()) + SYNONYMS[kind] if name not in BROAD]
    return choose(rng, others) if others and rng.random() > BASIC else kind


def tone_of(thing: Thing) -> str:
    """Which version of its colour a thing has: a key of the inner tables of ``SHADES``."""
    return "dark" if thing.shade < -0.4 else "light" if thing.shade > 0.4 else "mid"


def _size(scene: Scene, i: int, rng: np.random.Generator) -> Phrase | None:
    size = scene.things[i].size
    if size == "medium":
        return None
    words = choose(rng, SIZE_WORDS[size])
    return Phrase(words, tuple(_truth(t.size == size, t.size == "medium") for t in scene.things), words)


def _pattern(scene: Scene, i: int, rng: np.random.Generator) -> Phrase | None:
    pattern = scene.things[i].pattern
    if pattern == "plain":
        return None
    words = choose(rng, PATTERN_WORDS[pattern])
    return Phrase(words, tuple(t.pattern == pattern for t in scene.things), words)


def _colour(scene: Scene, i: int, rng: np.random.Generator) -> Phrase | None:
    thing = scene.things[i]
    shades = SHADES[thing.colour].get(tone_of(thing), ())
    if not shades or rng.random() < BASIC:
        return Phrase(thing.colour, tuple(t.colour == thing.colour for t in scene.things), thing.colour)
    same_tone = [_truth(tone_of(t) == tone_of(thing), True) for t in scene.things]
    words = choose(rng, shades)
    return Phrase(words, both([t.colour == thing.colour for t in scene.things], same_tone), words)


def _truth(clearly: bool, arguably: bool) -> Truth:
    return True if clearly else None if arguably else False


ATTRIBUTES = {"size": _size, "pattern": _pattern, "colour": _colour}
"""Attributes before a noun, in English order."""


def described(scene: Scene, i: int, rng: np.random.Generator, without: str = "") -> list[Phrase]:
    """Phrases of attributes and a noun that are true of thing ``i`` ("star", "big red star", "striped thing"), the
    shortest first; ``without`` leaves out one of ``ATTRIBUTES``, or ``kind``.
    """
    made = {name: make(scene, i, rng) for name, make in ATTRIBUTES.items() if name != without}
    known = [phrase for phrase in made.values() if phrase is not None]
    kind = scene.things[i].kind
    name, anything = kind_name(kind, rng), choose(rng, ("thing", "object"))
    nouns = [Phrase(name, tuple(t.kind == kind for t in scene.things), name)] if without != "kind" else []
    nouns.append(Phrase(anything, (True,) * len(scene.things), anything))
    found = []
    for count in range(len(known) + 1):
        for chosen in combinations(known, count):
            for noun in nouns if chosen else [noun for noun in nouns if noun.words == name]:
                words, fits = noun.words, noun.fits
                for phrase in reversed(chosen):
                    words, fits = f"{phrase.words} {words}", both(phrase.fits, fits)
                found.append(Phrase(words, fits, words))
    return found


def named(scene: Scene, i: int, rng: np.random.Generator, without: str = "") -> Phrase | None:
    """A short phrase that identifies thing ``i`` by its attributes or, if they do not suffice, by its place.

    "left star" is preferred to "star on the left", which in "the cat above the star on the left" could go with either.
    """
    options = described(scene, i, rng, without)
    unique = [phrase for phrase in options if phrase.names(i)]
    if not unique:
        unique = [phrase for base in options for phrase in placed(scene, i, base, rng) if phrase.names(i)]
    ranks = [(not phrase.ends_with_head, len(phrase.words.split())) for phrase in unique]
    return choose(rng, [p for p, rank in zip(unique, ranks, strict=True) if rank == min(ranks)]) if unique else None


# --- By place: each narrows a phrase ("red star") down to one of those things ---

SIDES: dict[str, tuple[str, int, tuple[str, ...], tuple[str, ...]]] = {
    "left": ("x", 1, ("{} on the left", "left {}", "{} to the left"), ("leftmost {}", "{} furthest left")),
    "right": ("x", -1, ("{} on the right", "right {}", "{} to the right"), ("rightmost {}", "{} furthest right")),
    "top": ("y", 1, ("{} at the top", "upper {}"), ("topmost {}", "highest {}")),
    "bottom": ("y", -1, ("{} at the bottom", "lower {}"), ("bottommost {}", "lowest {}")),
}
"""Side -> coordinate, direction, words for one of two, words for one of several."""
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def placed(scene: Scene, i: int, base: Phrase, rng: np.random.Generator) -> list[Phrase]:
    """``base`` narrowed down by side, corner or order, all true of thing ``i``."""
    members = base.members()
    if members is None or i not in members:
        return []
    found = [_in_corner(scene, i, base, rng)]
    if len(members) > 1:
        found += [_at_side(scene, i, base, members, side, rng) for side in SIDES]
    if len(members) > 2:
        found += [_in_order(scene, i, base, members, side) for side in ("left", "right")]
    return [phrase for phrase in found if phrase is not None]


def _only(scene: Scene, i: int, words: str, base: Phrase, other: str = "") -> Phrase:
    return Phrase(words, tuple(j == i for j in range(len(scene.things))), base.head, other)


def _at_side(
    scene: Scene, i: int, base: Phrase, members: list[int], side: str, rng: np.random.Generator
) -> Phrase | None:
    axis, direction, of_two, of_several = SIDES[side]
    at = {j: direction * getattr(scene.things[j], axis) for j in members}
    if any(at[j] - at[i] < APART for j in members if j != i):
        return None
    return _only(scene, i, choose(rng, of_two if len(members) == 2 else of_several).format(base.words), base)


def _in_order(scene: Scene, i: int, base: Phrase, members: list[int], side: str) -> Phrase | None:
    """``second star from the left``; only where the whole row has clear gaps."""
    row = sorted(members, key=lambda j: scene.things[j].x, reverse=side == "right")
    if any(abs(scene.things[a].x - scene.things[b].x) < APART for a, b in pairwise(row)):
        return None
    return _only(scene, i, f"{ORDINALS[row.index(i)]} {base.words} from the {side}", base)


def _in_corner(scene: Scene, i: int, base: Phrase, rng: np.random.Generator) -> Phrase | None:
    thing = scene.things[i]
    row = "top" if thing.y < 0.38 else "bottom" if thing.y > 0.62 else ""
    column = "left" if thing.x < 0.38 else "right" if thing.x > 0.62 else ""
    if not row or not column:
        return None
    in_row = [_on_side(t.y, row == "top") for t in scene.things]
    in_column = [_on_side(t.x, column == "left") for t in scene.things]
    words = choose(rng, ("in the {} {} corner", "at the {} {}", "{} {}")).format(row, column)
    return Phrase(f"{base.words} {words}", both(base.fits, both(in_row, in_column)), base.head)


def _on_side(at: float, low: bool) -> Truth:
    distance = at if low else 1 - at
    return _truth(distance < 0.38, distance < 0.5 + ARGUABLE)


# --- By size and by relation ---


def extreme(scene: Scene, i: int, base: Phrase, rng: np.random.Generator) -> list[Phrase]:
    """``biggest star``, ``smaller red thing``: thing ``i`` is a whole size apart from the other things of ``base``."""
    members = base.members()
    if members is None or i not in members or len(members) < 2:
        return []
    order = ("small", "medium", "large")
    size, others = order.index(scene.things[i].size), [order.index(scene.things[j].size) for j in members if j != i]
    pair = len(members) == 2
    if size > max(others):
        word = choose(rng, ("bigger", "larger") if pair else ("biggest", "largest"))
    elif size < min(others):
        word = "smaller" if pair else "smallest"
    else:
        return []
    return [_only(scene, i, f"{word} {base.words}", base)]


RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "on": ("on", "on top of"),
}


def stands(scene: Scene, i: int, j: int, kind: Relation) -> Truth:
    """Whether thing ``i`` is ``kind`` (left of, above, ...) thing ``j``."""
    if i == j:
        return False
    if kind == "on":
        return (i, j) in scene.on
    if relation(scene, i, j) == kind:
        return True
    a, b = scene.things[i], scene.things[j]
    shift = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[kind]
    return None if shift > ARGUABLE else False


def landmarks(scene: Scene, i: int, rng: np.random.Generator) -> dict[int, Phrase]:
    """Names of the other things to which thing ``i`` has a clear relation."""
    found = {j: named(scene, j, rng) for j in range(len(scene.things)) if j != i and relation(scene, i, j) is not None}
    return {j: phrase for j, phrase in found.items() if phrase is not None and phrase.ends_with_head}


def related(scene: Scene, i: int, base: Phrase, known: Mapping[int, Phrase], rng: np.random.Generator) -> list[Phrase]:
    """``star above the red cat``, for each of the landmarks that are ``known`` (:func:`landmarks`)."""
    found = []
    for j, landmark in known.items():
        kind = relation(scene, i, j)
        if kind is not None:
            truth = [stands(scene, k, j, kind) for k in range(len(scene.things))]
            words = f"{base.words} {choose(rng, RELATION_WORDS[kind])} the {landmark.words}"
            found.append(Phrase(words, both(base.fits, truth), base.head, f"the {landmark.words}"))
    return found
