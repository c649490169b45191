"""Looks of the second pre-training world: how a scene is drawn, by named styles, several of them at once.

A look determines everything about an image except its content. ``SEEN`` styles occur in training, alone and mixed;
``HELD_OUT`` ones only in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from vlkit.drawn.dice import Dice

Line = Literal["none", "edge", "outline", "sketch"]
Fill = Literal["flat", "shaded", "grainy", "patchy", "hatched"]
Ground = Literal["flat", "gradient", "clouds", "grain", "stripes", "grid", "checks", "dots", "patchwork"]

SMOOTH: tuple[Ground, ...] = ("gradient", "clouds", "grain")
REPEATING: tuple[Ground, ...] = ("stripes", "grid", "checks", "dots", "patchwork")


@dataclass(frozen=True)
class Look:
    """How a scene is drawn.

    Attributes:
        line: around the parts of things: none, a thin edge in a darker tone, a dark outline, a wobbling one.
        width: of outlines, 1 = usual.
        fill: what the surfaces of things are like.
        ground: what is behind the things.
        dark: the ground is dark, and outlines are thin edges.
        bold: how far apart the two colours of the ground are, 0 to 1.
        clutter: number of small marks on the ground.
        shadow: things throw a shadow.
        turn: largest turn of a thing in degrees.
        crop: the image shows a part of the scene, enlarged.
        contrast, brightness: of the whole image; 1 and 0 (of 255) change nothing.
        inverted: light and dark change places; hues stay.
        blur: radius in pixels.
        noise: standard deviation of grain over the whole image (of 255).
        jpeg: quality of compression; 0 = none.
        mosaic: side of square cells of one colour in pixels; 0 = none.
        seed: fixes every random detail of the drawing.
    """

    line: Line = "edge"
    width: float = 1.0
    fill: Fill = "flat"
    ground: Ground = "flat"
    dark: bool = False
    bold: float = 0.4
    clutter: int = 0
    shadow: bool = False
    turn: float = 0.0
    crop: bool = False
    contrast: float = 1.0
    brightness: float = 0.0
    inverted: bool = False
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    mosaic: int = 0
    seed: int = 0


Change = Callable[[Look, Dice], Look]

SEEN: dict[str, Change] = {
    "plain": lambda look, dice: look,
    "bare": lambda look, dice: replace(look, line="none"),
    "outlined": lambda look, dice: replace(look, line="outline", width=dice.uniform(0.6, 1.3)),
    "hand-drawn": lambda look, dice: replace(look, line="sketch", width=dice.uniform(0.6, 1.3), turn=14.0),
    "shaded": lambda look, dice: replace(look, fill="shaded"),
    "textured": lambda look, dice: replace(look, fill=dice.one_of(("grainy", "patchy"))),
    "shadows": lambda look, dice: replace(look, shadow=True),
    "turned": lambda look, dice: replace(look, turn=25.0),
    "smooth ground": lambda look, dice: replace(look, ground=dice.one_of(SMOOTH), bold=dice.uniform(0.2, 0.8)),
    "repeating ground": lambda look, dice: replace(look, ground=dice.one_of(REPEATING), bold=dice.uniform(0.1, 0.5)),
    "dark ground": lambda look, dice: replace(look, dark=True),
    "clutter": lambda look, dice: replace(look, clutter=3 + dice.integer(12)),
    "crop": lambda look, dice: replace(look, crop=True),
    "faded": lambda look, dice: replace(look, contrast=dice.uniform(0.55, 1.15), brightness=dice.uniform(-25, 25)),
    "inverted": lambda look, dice: replace(look, inverted=True, dark=False),
    "blur": lambda look, dice: replace(look, blur=dice.uniform(0.5, 1.3)),
    "noise": lambda look, dice: replace(look, noise=dice.uniform(6, 30)),
    "jpeg": lambda look, dice: replace(look, jpeg=12 + dice.integer(50)),
}
"""Styles of training: what each changes in a look."""

HELD_OUT: dict[str, Change] = {
    "hatched": lambda look, dice: replace(look, fill="hatched"),
    "mosaic": lambda look, dice: replace(look, mosaic=2),
}
"""Styles absent from all training images."""

MIXED = "mixed"
SHARES = {
    **{"bare": 0.12, "outlined": 0.25, "hand-drawn": 0.3, "shaded": 0.15, "textured": 0.2, "shadows": 0.2},
    **{"turned": 0.15, "smooth ground": 0.3, "repeating ground": 0.22, "dark ground": 0.15, "clutter": 0.3},
    **{"crop": 0.12, "faded": 0.2, "inverted": 0.08, "blur": 0.12, "noise": 0.15, "jpeg": 0.2},
}
"""How often a mixed look has each style; a later style overrides an earlier one."""
TRAINING_MIXED = 0.8
"""Share of mixed looks in training; the others have one style each."""


def sample_look(dice: Dice, style: str | None = None) -> Look:
    """A look at random.

    Args:
        dice: source of every choice.
        style: a key of :data:`SEEN` or :data:`HELD_OUT`, alone on an otherwise plain look; ``mixed``: several seen ones
            at once; None: as in training.
    """
    if style is None:
        style = MIXED if dice.chance(TRAINING_MIXED) else dice.one_of(tuple(SEEN))
    look = Look(seed=dice.integer(2**31))
    if style != MIXED:
        return (SEEN | HELD_OUT)[style](look, dice)
    for name, share in SHARES.items():
        if dice.chance(share):
            look = SEEN[name](look, dice)
    return look
