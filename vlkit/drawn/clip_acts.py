"""Actions of one thing, or of two together, in a clip: one function each, which returns a beginning and an event.

A solo function takes a thing as it stands; it may change how the thing begins only if it opens the clip. A pair
function places both things itself. None means that there is no room for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlkit.drawn.backgrounds import STYLES
from vlkit.drawn.clips import HOP, REACH, SHAKE, Event, PairAction, SoloAction
from vlkit.drawn.graph import SIZES, Background, Size, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.scenes import MARGIN, choose, fits, stand_on
from vlkit.drawn.words import COLOURS

STEPS = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "down": (0.0, 1.0), "up": (0.0, -1.0)}
BACK = {"right": "left", "left": "right", "down": "up", "up": "down"}
TURNS = ("clockwise", "counterclockwise")
ROUND = frozenset({"circle", "ring", "sun"})
"""Kinds on which a turn is hard to see."""
SLIM = frozenset({"arrow", "bottle", "candle", "chair", "cross", "flower", "key", "lamp", "leaf", "moon", "table"})
SLIM |= {"ring", "umbrella"}
"""Kinds that hide too little for something to pass behind them."""
NEAREST = 0.35
"""Minimum length of a move, in fractions of the image."""

Slot = tuple[float, float]
"""Start and stop of an event in seconds."""


@dataclass(frozen=True)
class Setting:
    """Inputs of an action besides the thing.

    Attributes:
        background: colours that would not be seen on it are avoided.
        slot: when it happens.
        opening: whether it is the first thing that happens to the thing.
        taken: kinds that are in the clip already.
    """

    background: Background
    slot: Slot
    opening: bool = True
    taken: frozenset[str] = frozenset()


Act = tuple[Thing, Event]
Solo = Callable[[np.random.Generator, Thing, Setting], Act | None]
Pair = Callable[[np.random.Generator, Thing, Thing, Slot], tuple[Thing, Thing, Event]]


def shifted(thing: Thing, way: str, distance: float) -> Thing:
    """The thing moved by a fraction of the image."""
    dx, dy = STEPS[way]
    return dataclasses.replace(thing, x=round(thing.x + dx * distance, 4), y=round(thing.y + dy * distance, 4))


def outside(thing: Thing, way: str) -> Thing:
    """The thing just outside the image, straight in the direction ``way``."""
    reach = REACH * thing.scale
    place = {"right": {"x": 1 + reach}, "left": {"x": -reach}, "down": {"y": 1 + reach}, "up": {"y": -reach}}[way]
    return dataclasses.replace(thing, **{axis: round(value, 4) for axis, value in place.items()})


def resized(thing: Thing, rng: np.random.Generator, *sizes: Size) -> Thing:
    """The thing in one of the sizes."""
    size = choose(rng, sizes)
    return dataclasses.replace(thing, size=size, scale=round(SIZES[size] * float(rng.uniform(0.94, 1.06)), 4))


def _event(action: SoloAction, setting: Setting, way: str = "", end: Thing | None = None) -> Event:
    return Event(action, 0, *setting.slot, way, None, () if end is None else ((0, end),))


def _move(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act | None:
    half = thing.scale / 2 * MARGIN
    room = {"right": 1 - half - thing.x, "left": thing.x - half, "down": 1 - half - thing.y, "up": thing.y - half}
    ways = [way for way in STEPS if room[way] > NEAREST]
    if not ways:
        return None
    way = choose(rng, ways)
    return thing, _event("move", setting, way, shifted(thing, way, float(rng.uniform(NEAREST, room[way]))))


def _cross(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    way = choose(rng, STEPS)
    return outside(thing, BACK[way]), _event("cross", setting, way, outside(thing, way))


def _enter(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    way = choose(rng, STEPS)
    return outside(thing, BACK[way]), _event("enter", setting, way, thing)


def _leave(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    way = choose(rng, STEPS)
    return thing, _event("leave", setting, way, outside(thing, way))


def _grow(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act | None:
    begin = resized(thing, rng, "small") if setting.opening else thing
    end = dataclasses.replace(begin, scale=round(begin.scale * float(rng.uniform(1.8, 2.3)), 4))
    return (begin, _event("grow", setting, "", end)) if fits(end, []) else None


def _shrink(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act | None:
    begin = resized(thing, rng, "large") if setting.opening else thing
    end = dataclasses.replace(begin, scale=round(begin.scale / float(rng.uniform(1.8, 2.3)), 4))
    return (begin, _event("shrink", setting, "", end)) if fits(begin, []) and end.scale > 0.13 else None


def _spin(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act | None:
    if thing.kind in ROUND:
        return None
    return thing, _event("spin", setting, choose(rng, TURNS))


def _hop(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act | None:
    return (thing, _event("hop", setting)) if fits(shifted(thing, "up", HOP), []) else None


def _shake(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act | None:
    fine = all(fits(shifted(thing, way, SHAKE), []) for way in ("left", "right"))
    return (thing, _event("shake", setting)) if fine else None


def _appear(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    return thing, _event("appear", setting, "", thing)


def _disappear(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    return thing, _event("disappear", setting)


def _recolour(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    avoided = {thing.colour, setting.background.colour, *STYLES[setting.background.style].hidden}
    colour = choose(rng, [name for name in COLOURS if name not in avoided])
    return thing, _event("recolour", setting, colour, dataclasses.replace(thing, colour=colour, shade=0.0))


def _become(rng: np.random.Generator, thing: Thing, setting: Setting) -> Act:
    kind = choose(rng, [name for name in KINDS if name != thing.kind and name not in setting.taken])
    return thing, _event("become", setting, kind, dataclasses.replace(thing, kind=kind))


SOLO: dict[str, Solo] = {
    "move": _move,
    "cross": _cross,
    "enter": _enter,
    "leave": _leave,
    "grow": _grow,
    "shrink": _shrink,
    "spin": _spin,
    "hop": _hop,
    "shake": _shake,
    "appear": _appear,
    "disappear": _disappear,
    "recolour": _recolour,
    "become": _become,
}
"""Actions of a single thing."""
FIRST = tuple(action for action in SOLO if action not in ("cross", "leave", "disappear", "recolour", "become"))
"""Actions after which the same thing, looking the same, can do another."""
SECOND = tuple(action for action in SOLO if action not in ("cross", "enter", "appear"))
"""Actions that can follow another one of the same thing."""


def _at(thing: Thing, x: float, y: float) -> Thing:
    return dataclasses.replace(thing, x=round(x, 4), y=round(y, 4))


def _lanes(rng: np.random.Generator, way: str, along: float, across: float) -> tuple[float, float]:
    """x and y of a point ``along`` the direction ``way`` (0 = where motion comes from, 1 = where it goes to)."""
    dx, dy = STEPS[way]
    at = along if dx + dy > 0 else 1 - along
    return (at, across) if dx else (across, at)


def _pass(action: PairAction) -> Pair:
    def act(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
        thing, other = resized(thing, rng, "small", "medium"), resized(other, rng, "large")
        way, row = choose(rng, STEPS), float(rng.uniform(0.3, 0.7))
        other = _at(other, *_lanes(rng, way, float(rng.uniform(0.46, 0.54)), row))
        begin = _at(thing, *_lanes(rng, way, thing.scale / 2 * MARGIN, row + float(rng.uniform(-0.05, 0.05))))
        end = shifted(begin, way, 1 - thing.scale * MARGIN)
        return begin, other, Event(action, 0, *slot, way, 1, ((0, end),))

    return act


def _near_and_far(rng: np.random.Generator, thing: Thing, other: Thing, way: str) -> tuple[Thing, Thing, Thing]:
    """``other``, and the thing far from it and next to it; ``way`` leads from far to near."""
    thing, other = resized(thing, rng, "small", "medium"), resized(other, rng, "small", "medium")
    row = float(rng.uniform(0.25, 0.75))
    other = _at(other, *_lanes(rng, way, 1 - other.scale / 2 * MARGIN, row))
    far = _at(thing, *_lanes(rng, way, thing.scale / 2 * MARGIN, row + float(rng.uniform(-0.04, 0.04))))
    gap = (thing.scale + other.scale) / 2 * MARGIN + float(rng.uniform(0, 0.04))
    return other, far, shifted(far, way, 1 - (thing.scale + other.scale) / 2 * MARGIN - gap)


def _approach(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
    way = choose(rng, STEPS)
    other, far, near = _near_and_far(rng, thing, other, way)
    return far, other, Event("approach", 0, *slot, way, 1, ((0, near),))


def _retreat(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
    way = choose(rng, STEPS)
    other, far, near = _near_and_far(rng, thing, other, BACK[way])
    return near, other, Event("retreat", 0, *slot, way, 1, ((0, far),))


def _orbit(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
    thing, other = resized(thing, rng, "small"), resized(other, rng, "small", "medium")
    other = _at(other, *rng.uniform(0.47, 0.53, size=2))
    radius, angle = float(rng.uniform(0.31, 0.34)), float(rng.uniform(0, 2 * np.pi))
    begin = _at(thing, other.x + radius * np.cos(angle), other.y + radius * np.sin(angle))
    return begin, other, Event("orbit", 0, *slot, choose(rng, TURNS), 1)


def _swap(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
    thing, other = resized(thing, rng, "small", "medium"), resized(other, rng, "small", "medium")
    way, half = choose(rng, STEPS), max(thing.scale, other.scale) / 2 * MARGIN
    thing = _at(thing, *_lanes(rng, way, float(rng.uniform(half, half + 0.08)), float(rng.uniform(0.3, 0.7))))
    other = _at(other, *_lanes(rng, way, float(rng.uniform(0.92 - half, 1 - half)), float(rng.uniform(0.3, 0.7))))
    ends = ((0, _at(thing, other.x, other.y)), (1, _at(other, thing.x, thing.y)))
    return thing, other, Event("swap", 0, *slot, "", 1, ends)


def _land(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
    thing, other = resized(thing, rng, "small"), resized(other, rng, "medium", "large")
    half = other.scale / 2 * MARGIN
    other = _at(other, float(rng.uniform(half, 1 - half)), 1 - half)
    end = stand_on(rng, thing, other)
    if end is None:
        raise ValueError(f"nothing can stand on a {other.kind}")
    return outside(end, "up"), other, Event("land", 0, *slot, "down", 1, ((0, end),))


def _chase(rng: np.random.Generator, thing: Thing, other: Thing, slot: Slot) -> tuple[Thing, Thing, Event]:
    """``other`` leads; both enter the image on one side and leave it on the other."""
    thing, other = resized(thing, rng, "small", "medium"), resized(other, rng, "small", "medium")
    way, row = choose(rng, ("left", "right")), float(rng.uniform(0.25, 0.75))
    gap = (thing.scale + other.scale) / 2 * MARGIN + float(rng.uniform(0.04, 0.12))
    other = outside(_at(other, 0.5, row), BACK[way])
    begin = shifted(_at(thing, other.x, row + float(rng.uniform(-0.04, 0.04))), BACK[way], gap)
    ends = ((0, shifted(begin, way, 1.5 + gap)), (1, shifted(other, way, 1.5 + gap)))
    return begin, other, Event("chase", 0, *slot, way, 1, ends)


PAIRS: dict[str, Pair] = {
    "behind": _pass("behind"),
    "front": _pass("front"),
    "approach": _approach,
    "retreat": _retreat,
    "orbit": _orbit,
    "swap": _swap,
    "land": _land,
    "chase": _chase,
}
"""Actions of a thing with another one."""
