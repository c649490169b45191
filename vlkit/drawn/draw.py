"""Scenes to images, exact boxes and outlines.

Everything is drawn at twice the size and downscaled, so edges are smooth. Beside the image a second image keeps, for
each pixel, the number of the thing seen there; boxes and areas are read from it and so agree with the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from vlkit.drawn.backgrounds import background_image, is_dark
from vlkit.drawn.graph import Line, Pattern, Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.words import COLOURS

SUPERSAMPLE = 2
DARK, WHITE = (48, 44, 50), (255, 255, 255)
CHALK, SLATE = (235, 235, 225), (132, 132, 140)
BLACKISH = 170
"""Sum of red, green and blue below which a thing counts as black."""


@dataclass
class Canvas:
    """An image being drawn, ``SUPERSAMPLE`` times as large as the result.

    Attributes:
        image: RGB.
        ids: mode L; 0 = background, i + 1 = thing i.
        line: how lines are drawn.
        chalk: light lines, for dark backgrounds.
    """

    image: Image.Image
    ids: Image.Image
    line: Line = "edge"
    chalk: bool = False

    @property
    def side(self) -> int:
        """Width and height in drawn (supersampled) pixels."""
        return self.image.width


def new_canvas(scene: Scene, size: int) -> Canvas:
    """A canvas of ``size`` final pixels that holds the scene's background and nothing else."""
    side = size * SUPERSAMPLE
    image = background_image(scene.background, side).copy()
    return Canvas(image, Image.new("L", (side, side)), scene.line, is_dark(scene.background))


def draw(scene: Scene, size: int = 96) -> Image.Image:
    """The scene as an RGB image of ``size`` x ``size`` pixels."""
    return render(scene, size)[0]


def boxes(scene: Scene, size: int = 96) -> list[tuple[float, float, float, float] | None]:
    """Box of each thing's visible part, xyxy in pixels of an image of that size; None for a fully hidden thing."""
    return mask_boxes(render(scene, size)[1], len(scene.things))


def render(scene: Scene, size: int = 96) -> tuple[Image.Image, np.ndarray]:
    """Image and, at twice the resolution, the visible thing at each pixel.

    Returns:
        RGB image [size, size] and uint8 [2 * size, 2 * size]: 0 = background, i + 1 = thing i.
    """
    canvas = new_canvas(scene, size)
    for number, thing in enumerate(scene.things):
        if scene.shadow:
            draw_shadow(canvas, thing)
        draw_thing(canvas, thing, number)
    return canvas.image.reduce(SUPERSAMPLE), np.asarray(canvas.ids)


def mask_boxes(ids: np.ndarray, count: int) -> list[tuple[float, float, float, float] | None]:
    """Boxes (xyxy, final pixels) of things 0 .. count - 1 from the fine id image of :func:`render`."""
    found: list[tuple[float, float, float, float] | None] = []
    for number in range(1, count + 1):
        seen = ids == number
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        if columns.size == 0:
            found.append(None)
            continue
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        left, top, right, bottom = (float(edge) / SUPERSAMPLE for edge in edges)
        found.append((left, top, right, bottom))
    return found


def place_points(points: np.ndarray, thing: Thing, side: float) -> np.ndarray:
    """Local points [n, 2] of a thing's kind to image coordinates, ``side`` pixels wide."""
    radius, angle = thing.scale / 2 * side, np.radians(thing.angle)
    cos, sin = np.cos(angle) * radius, np.sin(angle) * radius
    turn = np.array([[cos, sin], [-sin, cos]])
    return points @ turn + (thing.x * side, thing.y * side)


def tones(thing: Thing) -> dict[str, tuple[int, int, int]]:
    """RGB of each colour role of a thing."""
    body = shaded(COLOURS[thing.colour], thing.shade)
    return {
        "body": body,
        "shade": mix(body, (0, 0, 0), 0.3),
        "light": mix(body, WHITE, 0.5),
        "dark": DARK,
        "white": WHITE,
    }


def shaded(colour: tuple[int, int, int], shade: float) -> tuple[int, int, int]:
    """A darker (shade < 0) or lighter (shade > 0) version of a colour."""
    return mix(colour, (0, 0, 0), -0.55 * shade) if shade < 0 else mix(colour, WHITE, 0.55 * shade)


def mix(a: tuple[int, int, int], b: tuple[int, int, int], weight: float) -> tuple[int, int, int]:
    """``a`` moved towards ``b`` by ``weight`` in [0, 1]."""
    red, green, blue = (round(x + (y - x) * weight) for x, y in zip(a, b, strict=True))
    return red, green, blue


def draw_thing(canvas: Canvas, thing: Thing, number: int) -> None:
    """Draw one thing over the canvas, at its own place, size and angle; it may extend past the image's edge."""
    pen, ids = ImageDraw.Draw(canvas.image), ImageDraw.Draw(canvas.ids)
    colours = tones(thing)
    side = canvas.side
    for part in KINDS[thing.kind].parts:
        points = [tuple(point) for point in place_points(part.points, thing, side)]
        fill = colours[part.tone]
        pen.polygon(points, fill=fill)
        ids.polygon(points, fill=number + 1)
        if part.tone == "body" and thing.pattern != "plain":
            paint_pattern(canvas, thing, points)
        if canvas.line == "edge" and part.tone in ("dark", "white"):
            continue
        for contour in part.contours:
            path, colour, width = _line(canvas, place_points(contour, thing, side), thing, fill)
            pen.line(path, fill=colour, width=width, joint="curve" if canvas.line != "edge" else None)
            ids.line(path, fill=number + 1, width=width)


def _line(
    canvas: Canvas, contour: np.ndarray, thing: Thing, fill: tuple[int, int, int]
) -> tuple[list[tuple[float, ...]], tuple[int, int, int], int]:
    """Path, colour and width of the line around a part; hand-drawn ones wobble, the same way each time."""
    if canvas.line == "edge":
        return [*map(tuple, contour), tuple(contour[0])], mix(fill, (0, 0, 0), 0.35), max(1, canvas.side // 96)
    width = max(2, round(thing.scale * canvas.side / 18))
    if canvas.line == "sketch":
        contour = contour + wobble(len(contour), thing.seed) * thing.scale * canvas.side
        width = max(2, round(thing.scale * canvas.side / 26))
    colour = CHALK if canvas.chalk else DARK
    if not canvas.chalk and sum(tones(thing)["body"]) < BLACKISH:
        colour = SLATE  # dark lines would swallow every detail of a black thing
    return [*map(tuple, contour), *map(tuple, contour[:2])], colour, width


@lru_cache(maxsize=1024)
def wobble(count: int, seed: int) -> np.ndarray:
    """Shifts [count, 2] of a contour's points, fractions of the thing's width, smooth along round contours."""
    noise = np.random.Generator(np.random.PCG64(seed)).normal(0, 0.022, (count, 2))
    if count > 12:
        noise = (np.roll(noise, 1, axis=0) + noise + np.roll(noise, -1, axis=0)) * 0.6
    return noise


def paint_pattern(canvas: Canvas, thing: Thing, points: list[tuple[float, ...]]) -> None:
    """Stripes, dots or checks over one coloured part."""
    array = np.asarray(points)
    left, top = np.floor(array.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(array.max(axis=0)).astype(int) + 2
    if right <= left or bottom <= top:
        return
    mask = Image.new("1", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=1)
    # The pattern moves with the thing: its origin is the thing's centre.
    period = max(6, round(thing.scale * canvas.side / 4.5))
    tile = pattern_tile(thing.pattern, period, canvas.side)
    origin_x = (int(left) - round(thing.x * canvas.side)) % period
    origin_y = (int(top) - round(thing.y * canvas.side)) % period
    piece = tile.crop((origin_x, origin_y, origin_x + mask.width, origin_y + mask.height))
    canvas.image.paste(_second_colour(thing), (int(left), int(top)), ImageChops.logical_and(mask, piece))


def _second_colour(thing: Thing) -> tuple[int, int, int]:
    body = shaded(COLOURS[thing.colour], thing.shade)
    bright = sum(body) > 560
    return mix(body, (0, 0, 0), 0.55) if bright else mix(body, WHITE, 0.75)


@lru_cache(maxsize=64)
def pattern_tile(pattern: Pattern, period: int, side: int) -> Image.Image:
    """A pattern as a 1-bit image with room for any shift below one period."""
    y, x = np.mgrid[0:period, 0:period]
    if pattern == "striped":
        on = y < period // 2
    elif pattern == "dotted":
        on = (x - period / 2) ** 2 + (y - period / 2) ** 2 < (0.3 * period) ** 2
    else:
        on = (x < period // 2) ^ (y < period // 2)
    times = -(-2 * side // period)
    whole = np.tile((on * 255).astype(np.uint8), (times, times))[: 2 * side, : 2 * side]
    return Image.fromarray(whole).convert("1", dither=Image.Dither.NONE)


def draw_shadow(canvas: Canvas, thing: Thing) -> None:
    """A soft dark copy of a thing's outline, a little down and to the right."""
    side, offset = canvas.side, 0.07 * thing.scale * canvas.side
    shadow = Image.new("L", (side, side))
    pen = ImageDraw.Draw(shadow)
    for part in KINDS[thing.kind].parts:
        points = place_points(part.points, thing, side) + offset
        pen.polygon([tuple(point) for point in points], fill=90)
    region = _region(thing, side, offset)
    soft = shadow.crop(region).filter(ImageFilter.BoxBlur(side / 96))
    canvas.image.paste((0, 0, 0), region[:2], soft)


def _region(thing: Thing, side: int, offset: float) -> tuple[int, int, int, int]:
    reach = 0.75 * thing.scale * side + offset + 4
    x, y = thing.x * side, thing.y * side
    return int(max(0, x - reach)), int(max(0, y - reach)), int(min(side, x + reach)), int(min(side, y + reach))
