"""Scene graphs of the demo world: things, their places and relations, before drawing and captioning.

Coordinates are fractions of the image's side: (0, 0) top left, (1, 1) bottom right. Images are square.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

Domain = Literal["pretrain", "demo"]
Size = Literal["small", "medium", "large"]
Pattern = Literal["plain", "striped", "dotted", "checkered"]
Relation = Literal["left of", "right of", "above", "below", "on"]
Line = Literal["edge", "outline", "sketch"]

SIZES: dict[str, float] = {"small": 0.2, "medium": 0.29, "large": 0.42}
"""Width of a thing as a fraction of the image: 19, 28 and 40 px of 96."""


@dataclass(frozen=True)
class Thing:
    """One thing in a scene; ``dataclasses.replace`` makes a moved, turned or grown one.

    Attributes:
        kind: a key of :data:`vlkit.drawn.kinds.KINDS`.
        colour: a key of :data:`vlkit.drawn.words.COLOURS`.
        size: the word for its size; what is drawn follows ``scale``.
        pattern: what is on its coloured parts.
        x, y: centre, fractions of the image.
        scale: nominal width, fraction of the image.
        angle: turn in degrees, clockwise.
        shade: -1 (darkest) to 1 (lightest) version of the colour; 0 is the basic colour.
        seed: fixes the wobble of hand-drawn lines.
    """

    kind: str
    colour: str
    size: Size
    pattern: Pattern
    x: float
    y: float
    scale: float
    angle: float = 0.0
    shade: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Background:
    """The background behind the things.

    Attributes:
        style: ``flat``, or one of the demo styles of :mod:`vlkit.drawn.backgrounds`.
        colour: name within the style (``light blue``); empty where the style has only one look.
        seed: fixes texture and clutter.
        clutter: number of small distractor marks.
    """

    style: str
    colour: str
    seed: int = 0
    clutter: int = 0


@dataclass(frozen=True)
class Scene:
    """An image before it is drawn.

    Attributes:
        domain: which of the two domains it was made for.
        things: back to front.
        background: what is behind them.
        line: how lines are drawn: a thin edge, a thick outline, a hand-drawn one.
        shadow: whether things throw a soft shadow.
        on: pairs (i, j): thing i stands on thing j.
    """

    domain: Domain
    things: tuple[Thing, ...]
    background: Background
    line: Line = "edge"
    shadow: bool = False
    on: tuple[tuple[int, int], ...] = ()

    def key(self) -> str:
        """Identity of a scene for a viewer: scenes with the same key must not be in different splits.

        Things (kind, colour, size, pattern, place) in any order and the background's style; shifts by a few pixels,
        shades and wobble do not count.
        """
        things = sorted((t.kind, t.colour, t.size, t.pattern, place(t)) for t in self.things)
        return json.dumps([self.domain, self.background.style, things])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; :func:`scene_from_json` reads them back."""
        return dataclasses.asdict(self)


def scene_from_json(value: dict[str, Any]) -> Scene:
    """The scene that :meth:`Scene.to_json` wrote."""
    return Scene(
        domain=value["domain"],
        things=tuple(Thing(**thing) for thing in value["things"]),
        background=Background(**value["background"]),
        line=value["line"],
        shadow=value["shadow"],
        on=tuple((int(i), int(j)) for i, j in value["on"]),
    )


def place(thing: Thing) -> str:
    """Where a thing is, on a 3 x 3 grid: ``top left``, ``top``, ..., ``middle``, ..., ``bottom right``."""
    column = "left" if thing.x < 0.38 else "right" if thing.x > 0.62 else ""
    row = "top" if thing.y < 0.38 else "bottom" if thing.y > 0.62 else ""
    return f"{row} {column}".strip() or "middle"


def relation(scene: Scene, i: int, j: int) -> Relation | None:
    """Relation of thing ``i`` to thing ``j``; None if neither direction is clear."""
    if (i, j) in scene.on:
        return "on"
    if (j, i) in scene.on:
        return "below"
    a, b = scene.things[i], scene.things[j]
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > 1.4 * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > 1.4 * abs(dx):
        return "above" if dy < 0 else "below"
    return None
