"""Random scenes of the two domains of the demo world."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vlkit.drawn.backgrounds import FLAT_COLOURS, STYLES
from vlkit.drawn.graph import (
    SIZES,
    Background,
    Domain,
    Pattern,
    Relation,
    Scene,
    Size,
    Thing,
    place,
    relation,
    scene_from_json,
)
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.words import COLOURS, SHADES

__all__ = [
    "SIZES",
    "Background",
    "Domain",
    "Pattern",
    "Relation",
    "Scene",
    "Size",
    "Thing",
    "choose",
    "fits",
    "place",
    "place_freely",
    "relation",
    "sample_scene",
    "scene_from_json",
    "stand_on",
]

PATTERNS: tuple[Pattern, ...] = ("plain", "striped", "dotted", "checkered")
MARGIN = 1.08
"""Margin of a thing to the image's edge, in its own widths: outlines and rotated corners extend past its box."""


def sample_scene(rng: np.random.Generator, domain: Domain) -> Scene:
    """Draw a scene at random; every choice comes from ``rng``."""
    return _SAMPLERS[domain](rng)


def choose(rng: np.random.Generator, options: Iterable[Any], weights: Sequence[float] | None = None) -> Any:
    """One of ``options`` (weights need not sum to one)."""
    options = list(options)
    if weights is None:
        return options[int(rng.integers(len(options)))]
    total = np.cumsum(np.asarray(weights, dtype=np.float64))
    return options[int(np.searchsorted(total, rng.random() * total[-1], side="right"))]


def fits(thing: Thing, others: Sequence[Thing], gap: float = 0.9) -> bool:
    """Whether a thing lies inside the image and keeps clear of the others (``gap`` < 1 lets boxes overlap a bit)."""
    half = thing.scale / 2 * MARGIN
    if not (half <= thing.x <= 1 - half and half <= thing.y <= 1 - half):
        return False
    for other in others:
        reach = gap * (thing.scale + other.scale) / 2
        if max(abs(thing.x - other.x), abs(thing.y - other.y)) < reach:
            return False
    return True


def place_freely(
    rng: np.random.Generator, thing: Thing, others: Sequence[Thing], tries: int = 40, gap: float = 0.9
) -> Thing | None:
    """The thing at a random free spot, or None."""
    half = thing.scale / 2 * MARGIN
    for _ in range(tries):
        x, y = rng.uniform(half, 1 - half, size=2)
        moved = dataclasses.replace(thing, x=round(float(x), 4), y=round(float(y), 4))
        if fits(moved, others, gap):
            return moved
    return None


def stand_on(rng: np.random.Generator, thing: Thing, support: Thing) -> Thing | None:
    """The thing standing on top of ``support`` (both upright), or None if there is no room or no surface."""
    top = KINDS[support.kind].top
    if top is None:
        return None
    y = support.y + top * support.scale / 2 - KINDS[thing.kind].bottom * thing.scale / 2
    x = support.x + float(rng.uniform(-0.1, 0.1)) * support.scale
    moved = dataclasses.replace(thing, x=round(x, 4), y=round(y, 4))
    return moved if fits(moved, []) else None


def _new_thing(rng: np.random.Generator, colours: list[str], sizes: tuple[float, ...], pattern: Pattern) -> Thing:
    size = choose(rng, SIZES, sizes)
    scale = round(SIZES[size] * float(rng.uniform(0.94, 1.06)), 4)
    kind, colour = choose(rng, KINDS), choose(rng, colours)
    return Thing(kind, colour, size, pattern, 0.5, 0.5, scale, seed=int(rng.integers(2**31)))


def _sample_pretrain(rng: np.random.Generator) -> Scene:
    """1-3 upright things on a flat ground. Frozen: the embedded base was trained on these."""
    background = Background("flat", choose(rng, FLAT_COLOURS))
    colours = [name for name in COLOURS if name not in background.colour]
    count = choose(rng, (1, 2, 3), (0.2, 0.45, 0.35))
    sizes = (0.25, 0.4, 0.35) if count < 3 else (0.4, 0.4, 0.2)
    things: list[Thing] = []
    on: list[tuple[int, int]] = []
    alike = rng.random() < 0.08
    while len(things) < count:
        pattern = choose(rng, PATTERNS, (0.85, 0.05, 0.05, 0.05))
        thing = _new_thing(rng, colours, sizes, pattern)
        if alike and things:
            thing = dataclasses.replace(thing, kind=things[0].kind, colour=things[0].colour)
        placed = None
        if not alike and len(things) == 1 and rng.random() < 0.25:
            placed = stand_on(rng, thing, things[0])
            if placed is not None and placed.scale <= 1.2 * things[0].scale:
                on.append((1, 0))
            else:
                placed = None
        if placed is None:
            placed = place_freely(rng, thing, things)
        if placed is not None:
            things.append(placed)
    return Scene("pretrain", tuple(things), background, on=tuple(on))


DEMO_SIZES = {2: (0.2, 0.4, 0.4), 3: (0.3, 0.45, 0.25), 4: (0.5, 0.4, 0.1), 5: (0.65, 0.35, 0.0)}
"""Weights of small, medium, large by the number of things."""


def _sample_demo(rng: np.random.Generator) -> Scene:
    """2-5 hand-drawn things, some alike, some on others, before a textured ground."""
    style = choose(rng, STYLES, [style.weight for style in STYLES.values()])
    ground = STYLES[style]
    background = Background(
        style, choose(rng, ground.colours), seed=int(rng.integers(2**31)), clutter=int(rng.integers(0, 13))
    )
    line = "outline" if rng.random() < 0.5 else "sketch"
    count = choose(rng, (2, 3, 4, 5), (0.25, 0.35, 0.27, 0.13))
    shadow = not ground.dark and rng.random() < 0.4
    while True:
        things, on = _demo_things(rng, background, count)
        if len(things) == count:
            return Scene("demo", tuple(things), background, line, bool(shadow), tuple(on))


def _demo_things(
    rng: np.random.Generator, background: Background, count: int
) -> tuple[list[Thing], list[tuple[int, int]]]:
    """Up to ``count`` things; fewer if the layout got stuck."""
    things: list[Thing] = []
    on: list[tuple[int, int]] = []
    if rng.random() < 0.3:
        things = _demo_stack(rng, background)
        on = [(1, 0)] if things else []
    # At least one thing differs from the rest: "two red hats" alone would fit too many images.
    alike = min(choose(rng, (1, 2, 3), (0.55, 0.3, 0.15)), count - 1)
    while len(things) < count:
        thing = _demo_thing(rng, background, count)
        for _ in range(min(alike, count - len(things))):
            twin = dataclasses.replace(thing, angle=_angle(rng), seed=int(rng.integers(2**31)))
            placed = place_freely(rng, twin, things, gap=0.98)
            if placed is None:
                return things, on
            things.append(placed)
        alike = 1
    return things, on


def _demo_stack(rng: np.random.Generator, background: Background) -> list[Thing]:
    """A thing and one that stands on it, or nothing where they do not fit."""
    support = _demo_thing(rng, background, 3)
    kind = choose(rng, [name for name, kind in KINDS.items() if kind.top is not None])
    size = choose(rng, ("medium", "large"))
    support = dataclasses.replace(support, kind=kind, size=size, scale=_scale(rng, size))
    rider = _demo_thing(rng, background, 5)
    x, y = rng.uniform(0.25, 0.75), rng.uniform(0.5, 0.85)
    support = dataclasses.replace(support, x=round(float(x), 4), y=round(float(y), 4))
    placed = stand_on(rng, rider, support)
    return [support, placed] if placed is not None and fits(support, []) else []


def _demo_thing(rng: np.random.Generator, background: Background, count: int) -> Thing:
    """A thing, upright and in the middle, that can be seen on the background."""
    ground = STYLES[background.style]
    size = choose(rng, SIZES, DEMO_SIZES[count])
    colour = choose(rng, [name for name in COLOURS if name not in ground.hidden and name != background.colour])
    tone = choose(rng, [tone for tone in SHADES[colour] if not (ground.dark and tone == "dark")])
    low, high = {"dark": (-0.8, -0.6), "mid": (-0.12, 0.12), "light": (0.6, 0.8)}[tone]
    pattern = choose(rng, PATTERNS, (0.55, 0.15, 0.15, 0.15))
    return Thing(
        choose(rng, KINDS),
        colour,
        size,
        pattern,
        0.5,
        0.5,
        _scale(rng, size),
        shade=round(float(rng.uniform(low, high)), 3),
        seed=int(rng.integers(2**31)),
    )


def _scale(rng: np.random.Generator, size: str) -> float:
    return round(SIZES[size] * float(rng.uniform(0.92, 1.08)), 4)


def _angle(rng: np.random.Generator) -> float:
    """A slight turn, in degrees."""
    return round(float(np.clip(rng.normal(0, 6), -12, 12)), 2)


_SAMPLERS: dict[str, Callable[[np.random.Generator], Scene]] = {"pretrain": _sample_pretrain, "demo": _sample_demo}
