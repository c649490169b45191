"""Reads phrases of the demo world as a person would, independently of the code that wrote them."""

from __future__ import annotations

import re

from vlkit.drawn.graph import Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.words import COLOURS, FAMILIAR, SHADES, SYNONYMS, plural

NAMES = {name: kind for kind in KINDS for name in (kind, *FAMILIAR.get(kind, ()), *SYNONYMS[kind])}
PLURALS = {plural(name): kind for name, kind in NAMES.items()}
TONES = {word: (colour, tone) for colour, tones in SHADES.items() for tone, words in tones.items() for word in words}
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
PATTERNS = {"striped": "striped", "spotted": "dotted", "dotted": "dotted", "checkered": "checkered"}
PATTERNS["chequered"] = "checkered"
ORDINALS = ("first", "second", "third", "fourth", "fifth")
SIDES = {
    "x": ("left", "leftmost", "furthest left"),
    "-x": ("right", "rightmost", "furthest right"),
    "y": ("upper", "topmost", "highest", "top"),
    "-y": ("lower", "bottommost", "lowest", "bottom"),
}
RELATIONS = {"left of": "x", "right of": "-x", "above": "y", "over": "y", "below": "-y", "under": "-y"}
_RELATION = re.compile(r"(.+?) (?:to the )?(left of|right of|above|over|below|under|on top of|on) the (.+)")


def resolve(words: str, scene: Scene) -> list[int]:
    """Numbers of the things that a phrase ("left red star", "cup on the table") is true of."""
    for pattern, read in _FORMS:
        match = re.fullmatch(pattern, words)
        if match:
            return read(match, scene)
    return [i for i, thing in enumerate(scene.things) if _fits(words, thing)]


def related(words: str, scene: Scene) -> tuple[list[int], list[int]]:
    """For "cat above the star on the left": what "cat" is true of, and what the whole is true of."""
    match = _RELATION.fullmatch(words)
    assert match, words
    return resolve(match[1], scene), _relation(match, scene)


def _axis(thing: Thing, axis: str) -> float:
    return -getattr(thing, axis[1]) if axis.startswith("-") else getattr(thing, axis)


def _first(members: list[int], axis: str, scene: Scene) -> list[int]:
    return sorted(members, key=lambda i: _axis(scene.things[i], axis))[:1]


def _side(match: re.Match[str], scene: Scene) -> list[int]:
    axis = next(axis for axis, words in SIDES.items() if match["side"] in words)
    return _first(resolve(match["base"], scene), axis, scene)


def _corner(match: re.Match[str], scene: Scene) -> list[int]:
    row, column = match["side"].split()
    return [
        i
        for i in resolve(match["base"], scene)
        if (scene.things[i].y < 0.5) == (row == "top") and (scene.things[i].x < 0.5) == (column == "left")
    ]


def _order(match: re.Match[str], scene: Scene) -> list[int]:
    axis = "x" if match["side"] == "left" else "-x"
    row = sorted(resolve(match["base"], scene), key=lambda i: _axis(scene.things[i], axis))
    return [row[ORDINALS.index(match["number"])]]


def _extreme(match: re.Match[str], scene: Scene) -> list[int]:
    sign = 1 if match["word"].startswith("small") else -1
    return sorted(resolve(match["base"], scene), key=lambda i: sign * scene.things[i].scale)[:1]


def _relation(match: re.Match[str], scene: Scene) -> list[int]:
    (landmark,) = resolve(match[3], scene)
    found = []
    for i in resolve(match[1], scene):
        if match[2].startswith("on"):
            true = (i, landmark) in scene.on
        else:
            axis = RELATIONS[match[2]]
            shift = {a: _axis(scene.things[landmark], a) - _axis(scene.things[i], a) for a in ("x", "y")}
            along, across = (abs(shift[axis[-1]]), abs(shift["y" if axis[-1] == "x" else "x"]))
            ahead = _axis(scene.things[i], axis) < _axis(scene.things[landmark], axis)
            under = axis == "-y" and (landmark, i) in scene.on
            true = i != landmark and (under or (ahead and along > across))
        found += [i] if true else []
    return found


_FORMS = (
    (r"(?P<number>first|second|third|fourth|fifth) (?P<base>.+) from the (?P<side>left|right)", _order),
    (r"(?P<base>.+) in the (?P<side>(?:top|bottom) (?:left|right)) corner", _corner),
    (r"(?P<base>.+?) (?:at the )?(?P<side>(?:top|bottom) (?:left|right))", _corner),
    (r"(?P<base>.+) (?:on|to|at) the (?P<side>left|right|top|bottom)", _side),
    (r"(?P<base>.+) (?P<side>furthest left|furthest right)", _side),
    (_RELATION, _relation),
    (r"(?P<side>left|right|upper|lower|leftmost|rightmost|topmost|bottommost|highest|lowest) (?P<base>.+)", _side),
    (r"(?P<word>bigger|larger|biggest|largest|smaller|smallest) (?P<base>.+)", _extreme),
)


def _fits(words: str, thing: Thing) -> bool:
    """Attributes and a noun."""
    noun = next(name for name in sorted([*NAMES, "thing", "object"], key=len, reverse=True) if words.endswith(name))
    attributes = words.removesuffix(noun).strip()
    if noun not in ("thing", "object") and thing.kind != NAMES[noun]:
        return False
    for word in sorted([*TONES, *COLOURS, *SIZES, *PATTERNS], key=len, reverse=True):
        if not re.search(rf"\b{word}\b", attributes):
            continue
        attributes = re.sub(rf"\b{word}\b", "", attributes).strip()
        tone = "dark" if thing.shade < -0.4 else "light" if thing.shade > 0.4 else "mid"
        holds = {
            word in TONES: TONES.get(word) == (thing.colour, tone),
            word in COLOURS: thing.colour == word,
            word in SIZES: thing.size == SIZES.get(word),
            word in PATTERNS: thing.pattern == PATTERNS.get(word),
        }
        if not holds[True]:
            return False
    assert not attributes, f"{words!r}: {attributes!r} is not understood"
    return True
