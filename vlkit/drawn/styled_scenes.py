"""Scenes of the second pre-training world: more sizes, shades, angles and places than in the first one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from vlkit.drawn.dice import Dice
from vlkit.drawn.draw import shaded
from vlkit.drawn.graph import Background, Pattern, Scene, Size, Thing
from vlkit.drawn.grounds import ground_colours
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.styles import Look
from vlkit.drawn.words import COLOURS, SHADES

UNSEEN_KINDS = ("bell", "cactus", "kite", "rocket")
"""Kinds absent from this world's images and captions; the demo domain keeps them for adaptation."""
KNOWN_KINDS = tuple(kind for kind in KINDS if kind not in UNSEEN_KINDS)
MOST = 4
"""Maximum number of things in a scene."""

_COUNTS = (0.18, 0.42, 0.32, 0.08)
_SIZES: dict[Size, tuple[float, float]] = {"small": (0.165, 0.235), "medium": (0.26, 0.335), "large": (0.375, 0.48)}
_SIZE_WEIGHTS = ((0.25, 0.4, 0.35), (0.25, 0.4, 0.35), (0.4, 0.4, 0.2), (0.55, 0.4, 0.05))
_PATTERNS: tuple[Pattern, ...] = ("plain", "striped", "dotted", "checkered")
_PATTERN_WEIGHTS = (0.7, 0.1, 0.1, 0.1)
_TONES = {"dark": (-0.8, -0.5), "mid": (-0.2, 0.2), "light": (0.5, 0.8)}
# Inversion of light and dark turns these into what another word says.
_CHANGED_BY_INVERSION = ("black", "white", "pink", "brown")
_CLOSE_COLOUR = 100.0
_MARGIN = 1.06
_RIDERS = 0.18
_SMALL_TO_MEDIUM, _MEDIUM_TO_LARGE = 0.247, 0.355


def styled_scene(dice: Dice, look: Look) -> Scene:
    """1 to 4 things whose colours are distinguishable from the ground of ``look``."""
    palette = visible_colours(look)
    things: list[Thing] = []
    on: tuple[tuple[int, int], ...] = ()
    count = dice.weighted((1, 2, 3, 4), _COUNTS)
    alike = dice.chance(0.08)
    for number in range(count):
        thing = _thing(dice, look, palette, count)
        if alike and things:
            thing = replace(thing, kind=things[0].kind, colour=things[0].colour, shade=things[0].shade)
        rider = _on_top(dice, thing, things[0]) if number == 1 and not alike and dice.chance(_RIDERS) else None
        if rider is not None:
            things, on = [things[0], rider], ((1, 0),)
        elif (placed := _placed(dice, thing, things)) is not None:
            things.append(placed)
    scene = Scene("pretrain", tuple(things), Background("styled", ""), on=on)
    return _cropped(scene, dice) if look.crop else scene


def visible_colours(look: Look) -> list[tuple[str, float, float]]:
    """(colour, lowest and highest shade) of things that are distinguishable from the look's ground."""
    names, middles = _versions(look.inverted)
    first, second = ground_colours(look, Dice(np.random.Generator(np.random.PCG64(look.seed))))
    clear = np.abs(middles - first).sum(1) > _CLOSE_COLOUR
    if look.ground != "flat":
        clear &= np.abs(middles - second).sum(1) > _CLOSE_COLOUR / 2
    return [name for name, is_clear in zip(names, clear.tolist(), strict=True) if is_clear]


@cache
def _versions(inverted: bool) -> tuple[list[tuple[str, float, float]], np.ndarray]:
    """Versions of colours, as in :func:`visible_colours`, and their middles as RGB, float32 [n, 3]."""
    names, middles = [], []
    for colour, basic in COLOURS.items():
        if inverted and colour in _CHANGED_BY_INVERSION:
            continue
        for tone in ("mid",) if inverted else SHADES[colour]:
            names.append((colour, *_TONES[tone]))
            middles.append(shaded(basic, sum(_TONES[tone]) / 2))
    return names, np.asarray(middles, dtype=np.float32)


def _thing(dice: Dice, look: Look, palette: list[tuple[str, float, float]], count: int) -> Thing:
    """A thing somewhere."""
    colour, low, high = dice.one_of(palette)
    size = dice.weighted(tuple(_SIZES), _SIZE_WEIGHTS[count - 1])
    return Thing(
        kind=dice.one_of(KNOWN_KINDS),
        colour=colour,
        size=size,
        pattern=dice.weighted(_PATTERNS, _PATTERN_WEIGHTS),
        x=0.5,
        y=0.5,
        scale=dice.uniform(*_SIZES[size]),
        angle=dice.uniform(-look.turn, look.turn) if look.turn else 0.0,
        shade=dice.uniform(low, high),
        seed=dice.integer(512),
    )


def _placed(dice: Dice, thing: Thing, others: list[Thing], tries: int = 30) -> Thing | None:
    """The thing at a free place, or None."""
    half = thing.scale / 2 * _MARGIN
    for _ in range(tries):
        x, y = dice.uniform(half, 1 - half), dice.uniform(half, 1 - half)
        if all(max(abs(x - o.x), abs(y - o.y)) >= 0.46 * (thing.scale + o.scale) for o in others):
            return replace(thing, x=x, y=y)
    return None


def _on_top(dice: Dice, thing: Thing, support: Thing) -> Thing | None:
    """The thing upright on top of ``support``, or None if it has no surface or no room."""
    top = KINDS[support.kind].top
    if top is None or abs(support.angle) > 5 or thing.scale > 1.2 * support.scale:
        return None
    y = support.y + top * support.scale / 2 - KINDS[thing.kind].bottom * thing.scale / 2
    x = support.x + dice.uniform(-0.1, 0.1) * support.scale
    half = thing.scale / 2 * _MARGIN
    inside = half <= x <= 1 - half and half <= y <= 1 - half
    return replace(thing, x=x, y=y, angle=0.0) if inside else None


def _cropped(scene: Scene, dice: Dice) -> Scene:
    """A part of the scene, enlarged; things less than half inside are removed, sizes are updated."""
    zoom = dice.uniform(1.15, 1.7)
    for _ in range(6):
        left, top = dice.uniform(0, 1 - 1 / zoom), dice.uniform(0, 1 - 1 / zoom)
        moved = [
            replace(t, x=(t.x - left) * zoom, y=(t.y - top) * zoom, scale=(s := t.scale * zoom), size=size_word(s))
            for t in scene.things
        ]
        numbers = [i for i, thing in enumerate(moved) if _share_inside(thing) > 0.6]
        if numbers:
            places = {old: new for new, old in enumerate(numbers)}
            on = tuple((places[i], places[j]) for i, j in scene.on if i in places and j in places)
            return replace(scene, things=tuple(moved[i] for i in numbers), on=on)
    return scene


def size_word(scale: float) -> Size:
    """The word for a width (fraction of the image)."""
    return "small" if scale < _SMALL_TO_MEDIUM else "medium" if scale < _MEDIUM_TO_LARGE else "large"


def _share_inside(thing: Thing) -> float:
    """Share of a thing's square that lies in the image."""
    half = thing.scale / 2
    spans = [max(0.0, min(1, at + half) - max(0, at - half)) / thing.scale for at in (thing.x, thing.y)]
    return spans[0] * spans[1]
