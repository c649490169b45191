"""Backgrounds behind the things: flat colours (pre-training domain) and the drawn styles of the demo domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from vlkit.drawn.graph import Background

Colour = tuple[int, int, int]

FLAT_COLOURS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "light gray": (214, 216, 220),
    "light blue": (200, 222, 250),
    "light green": (208, 240, 208),
    "light yellow": (253, 246, 200),
    "light pink": (252, 222, 230),
}
"""Backgrounds of the pre-training domain."""

GRADIENTS: dict[str, tuple[Colour, Colour]] = {
    "purple": ((196, 176, 232), (120, 100, 176)),
    "orange": ((255, 222, 170), (232, 160, 110)),
    "turquoise": ((196, 240, 232), (104, 176, 176)),
    "pink": ((255, 222, 232), (224, 150, 176)),
    "gray": ((224, 224, 226), (150, 152, 160)),
}
WALLS: dict[str, Colour] = {
    "beige": (232, 218, 190),
    "mint": (196, 226, 206),
    "lilac": (214, 202, 230),
    "peach": (246, 208, 184),
}
SPECKLED: dict[str, Colour] = {"sand": (226, 204, 160), "stone": (196, 196, 190), "rust": (204, 150, 120)}
MARKS: tuple[Colour, ...] = ((120, 120, 128), (170, 140, 110), (110, 140, 170), (160, 120, 150))


@lru_cache(maxsize=16)
def background_image(background: Background, side: int) -> Image.Image:
    """RGB image [side, side] of a background. It is shared: copy before drawing on it."""
    if background.style == "flat":
        return Image.new("RGB", (side, side), FLAT_COLOURS[background.colour])
    rng = np.random.Generator(np.random.PCG64(background.seed))
    style = STYLES[background.style]
    image = style.paint(background.colour, side, rng)
    if not style.dark:
        # Washed out, as illustrators do, so that things in front keep their colour and outline.
        image = Image.blend(image, Image.new("RGB", image.size, (240, 240, 240)), 0.5)
    _scatter_marks(image, background.clutter, rng)
    return image


def is_dark(background: Background) -> bool:
    """Whether lines must be light to be visible on it."""
    return background.style in STYLES and STYLES[background.style].dark


def _gradient(top: Colour, bottom: Colour, side: int) -> np.ndarray:
    """float64 [side, 1, 3] from one colour to the other, top to bottom."""
    weight = np.linspace(0, 1, side)[:, None, None]
    return np.asarray(top) * (1 - weight) + np.asarray(bottom) * weight


def _to_image(pixels: np.ndarray, side: int) -> Image.Image:
    pixels = np.broadcast_to(pixels, (side, side, 3))
    return Image.fromarray(np.ascontiguousarray(pixels.clip(0, 255)).astype(np.uint8))


def _grain(rng: np.random.Generator, side: int, cells: int, strength: float) -> np.ndarray:
    """Brightness changes [side, side, 1] in square cells."""
    coarse = rng.normal(0, strength, (cells, cells)).astype(np.float32)
    fine = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(fine)[:, :, None]


def paint_gradient(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """One colour from light to deep, either way up or sideways."""
    pixels = _gradient(*GRADIENTS[colour], side)
    turned = [pixels, pixels[::-1], pixels.transpose(1, 0, 2), pixels.transpose(1, 0, 2)[:, ::-1]]
    return _to_image(turned[int(rng.integers(4))], side)


def paint_night(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A dark sky with small stars."""
    image = _to_image(_gradient((16, 18, 48), (46, 44, 92), side), side)
    pen = ImageDraw.Draw(image)
    for x, y, radius in rng.uniform((0, 0, 0.003), (1, 1, 0.009), size=(28, 3)) * side:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(240, 240, 210))
    return image


def paint_room(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A wall, a skirting board and a wooden floor."""
    image = Image.new("RGB", (side, side), WALLS[colour])
    pen = ImageDraw.Draw(image)
    floor = round(side * rng.uniform(0.62, 0.74))
    stripe = tuple(round(c * 0.95) for c in WALLS[colour])
    for x in np.arange(0, side, side / 9):
        pen.rectangle([x, 0, x + side / 22, floor], fill=stripe)
    pen.rectangle([0, floor, side, side], fill=(188, 150, 108))
    for y in np.linspace(floor, side, 5)[1:]:
        pen.line([0, y, side, y], fill=(160, 124, 86), width=max(1, side // 96))
    pen.rectangle([0, floor - side // 40, side, floor], fill=(246, 242, 234))
    return image


def paint_field(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Pale sky, clouds and grass."""
    image = _to_image(_gradient((176, 214, 246), (226, 240, 250), side), side)
    pen = ImageDraw.Draw(image)
    for x, y in rng.uniform((0, 0.03), (1, 0.3), size=(3, 2)) * side:
        for shift in (-0.05, 0, 0.05):
            pen.ellipse(
                [x + (shift - 0.05) * side, y, x + (shift + 0.05) * side, y + 0.07 * side], fill=(250, 250, 252)
            )
    ground = side * rng.uniform(0.55, 0.7)
    pen.rectangle([0, ground, side, side], fill=(150, 200, 120))
    for x, y in rng.uniform((0, 0.72), (1, 0.99), size=(30, 2)) * side:
        pen.line([x, y, x + side * 0.01, y - side * 0.03], fill=(104, 160, 84), width=max(1, side // 96))
    return image


def paint_sea(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Sky, water with waves, and a strip of sand."""
    image = _to_image(_gradient((206, 232, 248), (240, 246, 240), side), side)
    pen = ImageDraw.Draw(image)
    water = side * rng.uniform(0.4, 0.5)
    pen.rectangle([0, water, side, side], fill=(96, 164, 206))
    wave = side / 12
    for row in np.arange(water + wave * 0.7, side * 0.85, wave):
        start = -wave * rng.random()
        for x in np.arange(start, side, wave):
            pen.arc([x, row - wave * 0.3, x + wave, row + wave * 0.3], 0, 180, fill=(196, 224, 240), width=side // 96)
    pen.polygon([(0, side * 0.88), (side, side * 0.82), (side, side), (0, side)], fill=(236, 214, 160))
    return image


def paint_paper(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Squared paper."""
    image = Image.new("RGB", (side, side), (250, 248, 240))
    pen = ImageDraw.Draw(image)
    step = side / float(rng.integers(9, 13))
    for at in np.arange(step / 2, side, step):
        pen.line([at, 0, at, side], fill=(176, 200, 226), width=max(1, side // 96))
        pen.line([0, at, side, at], fill=(176, 200, 226), width=max(1, side // 96))
    return image


def paint_speckled(colour: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A rough surface: sand, stone or rust."""
    base = np.asarray(SPECKLED[colour], dtype=np.float64)
    return _to_image(base + _grain(rng, side, 48, 16) + _grain(rng, side, 7, 12), side)


def _scatter_marks(image: Image.Image, count: int, rng: np.random.Generator) -> None:
    """Small distractors: dots, ticks and dashes in faint colours."""
    pen, side = ImageDraw.Draw(image), image.width
    width = max(1, side // 96)
    for x, y, angle in rng.uniform(0, 1, size=(count, 3)):
        form, fill = int(rng.integers(3)), MARKS[int(rng.integers(len(MARKS)))]
        x, y, reach = x * side, y * side, side * 0.018
        dx, dy = reach * np.cos(angle * np.pi), reach * np.sin(angle * np.pi)
        if form == 0:
            pen.ellipse([x - reach / 2, y - reach / 2, x + reach / 2, y + reach / 2], fill=fill)
        else:
            pen.line([x - dx, y - dy, x + dx, y + dy], fill=fill, width=width)
        if form == 2:
            pen.line([x + dy, y - dx, x - dy, y + dx], fill=fill, width=width)


@dataclass(frozen=True)
class Style:
    """A background style of the demo domain.

    Attributes:
        paint: draws it from (colour name, side in pixels, generator).
        colours: names it may have; one empty name where it has a single look.
        hidden: thing colours that would be hard to see on it.
        words: what a caption may add about it; empty where there is nothing to say.
        weight: how often it is drawn, relative to the others.
        dark: lines on it are light.
    """

    paint: Callable[[str, int, np.random.Generator], Image.Image]
    colours: tuple[str, ...] = ("",)
    hidden: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    weight: float = 1.0
    dark: bool = False


STYLES: dict[str, Style] = {
    "gradient": Style(paint_gradient, tuple(GRADIENTS), weight=1.5),
    "night": Style(
        paint_night, hidden=("black", "brown"), words=("at night", "in the dark", "under a starry sky"), dark=True
    ),
    "room": Style(paint_room, tuple(WALLS), ("brown",), ("in a room", "indoors", "inside a room")),
    "field": Style(paint_field, hidden=("green",), words=("in a meadow", "outdoors", "in a grassy field")),
    "sea": Style(paint_sea, hidden=("blue", "turquoise"), words=("at the seaside", "by the sea", "at the beach")),
    "paper": Style(paint_paper, hidden=("white",), words=("on squared paper", "on graph paper")),
    "speckled": Style(paint_speckled, tuple(SPECKLED), ("gray", "brown"), weight=1.2),
}
"""Background styles of the demo domain."""
