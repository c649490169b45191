"""The kinds of things in the demo world, with their shapes and the surfaces that can carry other things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlkit.drawn import forms_made as made
from vlkit.drawn import forms_nature as nature
from vlkit.drawn.geometry import Part


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of thing.

    Attributes:
        name: its basic name, also the COCO category.
        group: COCO supercategory.
        parts: what is drawn, back to front.
        top: local y of the surface on which another thing can stand; None if nothing can.
        bottom: local y of its lowest point.
    """

    name: str
    group: str
    parts: tuple[Part, ...]
    top: float | None
    bottom: float


GROUPS: dict[str, tuple[Callable[[], list[Part]], ...]] = {
    "shape": (
        nature.circle,
        nature.square,
        nature.triangle,
        nature.star,
        nature.heart,
        nature.ring,
        nature.cross,
        nature.diamond,
        nature.arrow,
    ),
    "building": (made.house,),
    "vehicle": (made.car, made.boat, made.rocket),
    "plant": (nature.tree, nature.flower, nature.mushroom, nature.cactus, nature.leaf),
    "animal": (nature.fish, nature.bird, nature.cat),
    "sky": (nature.moon, nature.sun),
    "furniture": (made.chair, made.table, made.lamp, made.clock),
    "household": (made.cup, made.key, made.bell, made.book, made.bottle, made.candle, made.umbrella, made.hat),
    "food": (nature.apple,),
    "toy": (made.ball, made.balloon, made.kite, made.snowman),
}
# Surfaces wide enough to carry something, as local y.
TOPS = {"square": -0.9, "table": -0.5, "house": -0.95, "car": -0.6, "chair": 0.05, "book": -0.5, "hat": -0.75}


def _kind(group: str, function: Callable[[], list[Part]]) -> Kind:
    parts = tuple(function())
    bottom = max(float(part.points[:, 1].max()) for part in parts)
    return Kind(function.__name__, group, parts, TOPS.get(function.__name__), bottom)


KINDS: dict[str, Kind] = {f.__name__: _kind(group, f) for group, functions in GROUPS.items() for f in functions}
