"""Captions of the demo domain: other names, sentence frames and counts than in the pre-training domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlkit.drawn.backgrounds import STYLES
from vlkit.drawn.graph import Scene, Thing, place, relation
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import FAMILIAR, SHADES, SYNONYMS, plural, with_article

SYNONYM_SHARE = 0.4  # of the names of things and colours; the others are the familiar ones
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium-sized",), "large": ("large", "big", "huge")}
PATTERN_WORDS = {
    "striped": ("striped", "stripy"),
    "dotted": ("spotted", "polka-dot"),
    "checkered": ("chequered", "checked"),
}
PATTERN_TAILS = {"striped": "with stripes", "dotted": "with spots", "checkered": "with a chessboard pattern"}
PLACES = {
    "top left": ("in the upper left", "up on the left", "towards the top left"),
    "top": ("near the top", "high up"),
    "top right": ("in the upper right", "up on the right", "towards the top right"),
    "left": ("at the left-hand side", "towards the left"),
    "middle": ("in the centre", "halfway across"),
    "right": ("at the right-hand side", "towards the right"),
    "bottom left": ("in the lower left", "down on the left"),
    "bottom": ("near the bottom", "low down"),
    "bottom right": ("in the lower right", "down on the right"),
}
RELATIONS = {
    "left of": ("left of", "to the left-hand side of"),
    "right of": ("right of", "to the right-hand side of"),
    "above": ("over", "higher than", "above"),
    "below": ("under", "beneath", "lower than"),
    "on": ("on top of", "atop", "resting on"),
}
BESIDE = ("beside", "next to", "close to")
NEAR = 0.5
"""Centres at most this far apart, sideways, count as beside each other."""


@dataclass(frozen=True)
class Unit:
    """Things mentioned together: one, or several that look alike.

    Attributes:
        members: their numbers in the scene.
        thing: the first of them.
    """

    members: tuple[int, ...]
    thing: Thing

    @property
    def many(self) -> bool:
        """Whether the phrase is a plural."""
        return len(self.members) > 1


def caption_demo(scene: Scene, rng: np.random.Generator, detail: int) -> str:
    """A caption, lower case, true of the scene.

    Levels: 0 counts and kinds; 1 adds colours; 2 a relation or places; 3 sizes, patterns and places too.
    """
    units = group(scene)
    units = [units[int(i)] for i in rng.permutation(len(units))]
    frames: tuple[Callable[..., str | None], ...]
    if detail <= 1:
        frames = (_listing, _counting) if len(scene.things) > 2 else (_listing,)
    elif detail == 2:
        frames = (_relating, _relating, _sentence, _placing)
    else:
        frames = (_placing, _relating_and_placing)
    text = choose(rng, frames)(scene, units, rng, detail)
    if text is None:
        text = _placing(scene, units, rng, detail)
    return text + _setting(scene, rng)


def group(scene: Scene) -> list[Unit]:
    """The scene's things, those of one kind, colour, size and pattern joined; a thing in an "on" pair stays alone."""
    stacked = {i for pair in scene.on for i in pair}
    found: dict[tuple[object, ...], list[int]] = {}
    for i, thing in enumerate(scene.things):
        look: tuple[object, ...] = (thing.kind, thing.colour, thing.size, thing.pattern, thing.shade)
        found.setdefault((*look, i) if i in stacked else look, []).append(i)
    return [Unit(tuple(members), scene.things[members[0]]) for members in found.values()]


def _setting(scene: Scene, rng: np.random.Generator) -> str:
    words = STYLES[scene.background.style].words
    return f" {choose(rng, words)}" if words and rng.random() < 0.35 else ""


def _listing(scene: Scene, units: list[Unit], rng: np.random.Generator, detail: int) -> str:
    text = join([_phrase(unit, rng, detail) for unit in units])
    several = len(units) > 1 or units[0].many
    openings = ["", "you can see ", "somebody drew ", "a sketch showing ", "here " + ("are " if several else "is ")]
    return choose(rng, openings) + text


def _counting(scene: Scene, units: list[Unit], rng: np.random.Generator, detail: int) -> str:
    number = _number(len(scene.things))
    shown = units[: max(1, min(2, len(units) - 1))]
    text = join([_phrase(unit, rng, max(detail, 1)) for unit in shown])
    if len(shown) == len(units):
        return f"{number} objects: {text}"
    return choose(rng, (f"{number} objects including {text}", f"{number} items, among them {text}"))


def _placing(scene: Scene, units: list[Unit], rng: np.random.Generator, detail: int) -> str:
    phrases = []
    for unit in units[:3]:
        where = _where(scene, unit, rng)
        phrases.append(f"{_phrase(unit, rng, detail)} {where}".strip())
    rest = [_phrase(unit, rng, 1) for unit in units[3:]]
    return join(phrases + rest)


def _relating(scene: Scene, units: list[Unit], rng: np.random.Generator, detail: int) -> str | None:
    pair = _pair(scene, units, rng)
    if pair is None:
        return None
    first, words, second = pair
    text = f"{_phrase(first, rng, detail)} {words} {_phrase(second, rng, detail)}"
    rest = [_phrase(unit, rng, 1) for unit in units if unit not in (first, second)]
    return f"{text}, with {join(rest)}" if rest and rng.random() < 0.6 else text


def _relating_and_placing(scene: Scene, units: list[Unit], rng: np.random.Generator, detail: int) -> str | None:
    pair = _pair(scene, units, rng)
    if pair is None:
        return None
    first, words, second = pair
    text = f"{_phrase(first, rng, detail)} {words} {_phrase(second, rng, 2)}"
    rest = [unit for unit in units if unit not in (first, second)][:2]
    return join([text, *(f"{_phrase(unit, rng, 1)} {_where(scene, unit, rng)}".strip() for unit in rest)])


def _sentence(scene: Scene, units: list[Unit], rng: np.random.Generator, detail: int) -> str | None:
    pair = _pair(scene, units, rng)
    if pair is None:
        return None
    first, words, second = pair
    verb = choose(rng, ("are", "sit", "can be found") if first.many else ("is", "sits", "can be found"))
    words = words.removeprefix("resting ")
    return f"{_phrase(first, rng, detail)} {verb} {words} {_phrase(second, rng, detail)}"


def _pair(scene: Scene, units: list[Unit], rng: np.random.Generator) -> tuple[Unit, str, Unit] | None:
    """Two units, the first related to the second, and the words for it; things standing on others come first."""
    found: list[tuple[Unit, str, Unit]] = []
    for first in units:
        for second in units:
            kind = _unit_relation(scene, first, second) if first is not second else None
            if kind == "on":
                return first, choose(rng, RELATIONS["on"]), second
            if kind is not None:
                words = choose(rng, RELATIONS[kind])
                if kind in ("left of", "right of") and _near(scene, first, second) and rng.random() < 0.4:
                    words = choose(rng, BESIDE)
                found.append((first, words, second))
    return choose(rng, found) if found else None


def _unit_relation(scene: Scene, first: Unit, second: Unit) -> str | None:
    """The relation that holds between every member of one and every member of the other."""
    kinds = {relation(scene, i, j) for i in first.members for j in second.members}
    return kinds.pop() if len(kinds) == 1 else None


def _near(scene: Scene, first: Unit, second: Unit) -> bool:
    return all(abs(scene.things[i].x - scene.things[j].x) <= NEAR for i in first.members for j in second.members)


def _where(scene: Scene, unit: Unit, rng: np.random.Generator) -> str:
    """The place of all members, or nothing if they lie in different places."""
    places = {place(scene.things[i]) for i in unit.members}
    return choose(rng, PLACES[places.pop()]) if len(places) == 1 else ""


def _phrase(unit: Unit, rng: np.random.Generator, detail: int) -> str:
    """``a tiny navy automobile``, ``two striped mugs``: always true, never more than about six words."""
    thing = unit.thing
    words, tail = [], ""
    if (detail == 3 and thing.size != "medium") or (detail > 0 and rng.random() < 0.2):
        words.append(choose(rng, SIZE_WORDS[thing.size]))
    if thing.pattern != "plain" and detail > 0 and rng.random() < (0.8 if detail == 3 else 0.35):
        if detail == 3 and rng.random() < 0.3:
            tail = f" {PATTERN_TAILS[thing.pattern]}"
        else:
            words.append(choose(rng, PATTERN_WORDS[thing.pattern]))
    if detail > 0:
        words.append(colour_word(thing, rng))
    name = kind_word(thing.kind, rng)
    if unit.many:
        return " ".join([_number(len(unit.members)), *words, plural(name)]) + tail
    return with_article(" ".join([*words, name])) + tail


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else "many"


def colour_word(thing: Thing, rng: np.random.Generator) -> str:
    """The basic name of a thing's colour or one that fits its shade."""
    shade = "dark" if thing.shade < -0.4 else "light" if thing.shade > 0.4 else "mid"
    names = SHADES[thing.colour].get(shade, ())
    return choose(rng, names) if names and rng.random() < SYNONYM_SHARE else thing.colour


def kind_word(kind: str, rng: np.random.Generator) -> str:
    """The basic name of a kind or another one."""
    return choose(rng, FAMILIAR.get(kind, ()) + SYNONYMS[kind]) if rng.random() < SYNONYM_SHARE else kind


def join(phrases: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(phrases) if len(phrases) < 3 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
