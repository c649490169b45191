"""Styled scenes to images: things are drawn at twice the size and downscaled, looks are applied as arrays."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlkit.drawn.dice import Dice
from vlkit.drawn.draw import CHALK, DARK, SUPERSAMPLE, Canvas, mix, paint_pattern, place_points, tones, wobble
from vlkit.drawn.graph import Scene, Thing
from vlkit.drawn.grounds import SIDE, ground_colours, noise_field, paint_ground
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.styles import Look

FINE = SIDE * SUPERSAMPLE
_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[0:SIDE, 0:SIDE])


def render_styled(scene: Scene, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [96, 96, 3] and the visible thing at each pixel, uint8 [96, 96]: 0 = ground, i + 1 = thing i."""
    dice = Dice(np.random.Generator(np.random.PCG64(look.seed)))
    ground = paint_ground(look, dice, *ground_colours(look, dice))
    image = Image.fromarray(_bytes(ground)).resize((FINE, FINE), Image.Resampling.NEAREST)
    canvas = Canvas(image, Image.new("L", (FINE, FINE)))
    _clutter(canvas.image, look, dice)
    if look.shadow:
        _shadows(canvas, scene, dice)
    for number, thing in enumerate(scene.things):
        _draw_thing(canvas, thing, number, look)
    ids = np.asarray(canvas.ids)[::SUPERSAMPLE, ::SUPERSAMPLE]
    pixels = np.asarray(canvas.image.reduce(SUPERSAMPLE), dtype=np.float32)
    if look.fill != "flat":
        pixels = pixels * _surface(scene, look, ids, dice)[:, :, None]
    return _finish(pixels, look, dice), ids


def _draw_thing(canvas: Canvas, thing: Thing, number: int, look: Look) -> None:
    """Draw one thing over the canvas; it may extend past the edge of the image."""
    pen, ids = ImageDraw.Draw(canvas.image), ImageDraw.Draw(canvas.ids)
    colours = tones(thing)
    for part in KINDS[thing.kind].parts:
        points = place_points(part.points, thing, FINE)
        flat = points.ravel().tolist()
        pen.polygon(flat, fill=colours[part.tone])
        ids.polygon(flat, fill=number + 1)
        if part.tone == "body" and thing.pattern != "plain":
            paint_pattern(canvas, thing, [tuple(point) for point in points.tolist()])
        if look.line == "none" or (look.line == "edge" and part.tone in ("dark", "white")):
            continue
        colour, width = _pen(thing, colours[part.tone], look)
        for contour in part.contours:
            path = place_points(contour, thing, FINE)
            if look.line == "sketch":
                path = path + wobble(len(contour), thing.seed) * (thing.scale * FINE)
            closed = [*path.ravel().tolist(), *path[:2].ravel().tolist()]
            pen.line(closed, fill=colour, width=width)
            ids.line(closed, fill=number + 1, width=width)


def _pen(thing: Thing, fill: tuple[int, int, int], look: Look) -> tuple[tuple[int, int, int], int]:
    """Colour and width (drawn pixels) of lines. Lines are darker than the area they enclose, or a little lighter."""
    if look.line == "edge":
        return mix(fill, (0, 0, 0), 0.35), SUPERSAMPLE
    thin = 26 if look.line == "sketch" else 18
    width = max(2, round(look.width * thing.scale * FINE / thin))
    if sum(fill) < 200:
        return mix(fill, CHALK, 0.45), width  # dark lines would swallow every detail of a black thing
    return (mix(fill, (0, 0, 0), 0.55) if look.dark else DARK), width


def _shadows(canvas: Canvas, scene: Scene, dice: Dice) -> None:
    """Soft dark copies of the things' outlines, all shifted the same way."""
    shadow = Image.new("L", (SIDE, SIDE))
    pen, depth = ImageDraw.Draw(shadow), 60 + dice.integer(70)
    dx, dy = dice.uniform(-0.1, 0.1), dice.uniform(0.03, 0.1)
    for thing in scene.things:
        shift = np.array([dx, dy]) * thing.scale * SIDE
        for part in KINDS[thing.kind].parts:
            pen.polygon((place_points(part.points, thing, SIDE) + shift).ravel().tolist(), fill=depth)
    soft = shadow.filter(ImageFilter.BoxBlur(dice.uniform(0.5, 2))).resize((FINE, FINE), Image.Resampling.BILINEAR)
    canvas.image.paste((0, 0, 0), (0, 0), soft)


def _clutter(image: Image.Image, look: Look, dice: Dice) -> None:
    """Small marks: dots, dashes and crosses in any colour, faint or not."""
    pen = ImageDraw.Draw(image)
    for _ in range(look.clutter):
        x, y, reach = dice.random() * FINE, dice.random() * FINE, FINE * dice.uniform(0.008, 0.025)
        low = 70 if look.dark else 90
        fill = (low + dice.integer(110), low + dice.integer(110), low + dice.integer(110))
        form, angle = dice.integer(3), dice.uniform(0, np.pi)
        dx, dy = reach * float(np.cos(angle)), reach * float(np.sin(angle))
        if form == 0:
            pen.ellipse([x - reach / 2, y - reach / 2, x + reach / 2, y + reach / 2], fill=fill)
        else:
            pen.line([x - dx, y - dy, x + dx, y + dy], fill=fill, width=SUPERSAMPLE)
        if form == 2:
            pen.line([x + dy, y - dx, x - dy, y + dx], fill=fill, width=SUPERSAMPLE)


def _surface(scene: Scene, look: Look, ids: np.ndarray, dice: Dice) -> np.ndarray:
    """Factors float32 [96, 96] on the brightness of things; 1 on the ground."""
    if look.fill == "shaded":
        return _shading(scene, ids, dice)
    if look.fill == "hatched":
        period, angle = dice.uniform(3.2, 5.5), dice.uniform(0.4, 1.2)
        along = np.float32(np.cos(angle)) * _X + np.float32(np.sin(angle)) * _Y
        field = np.where(along % period < period * 0.38, np.float32(0.55), np.float32(1.12))
    else:
        strength = dice.uniform(0.06, 0.18)
        field = (1 + strength * noise_field(dice, look.fill == "grainy")).astype(np.float32)
    return np.where(ids > 0, field, np.float32(1))


def _shading(scene: Scene, ids: np.ndarray, dice: Dice) -> np.ndarray:
    """Things lit from one side."""
    angle, strength = dice.uniform(0, 2 * np.pi), dice.uniform(0.15, 0.4)
    factors = np.ones((SIDE, SIDE), dtype=np.float32)
    for number, thing in enumerate(scene.things):
        across = np.cos(angle) * (_X / SIDE - thing.x) + np.sin(angle) * (_Y / SIDE - thing.y)
        lit = (1 + 2 * strength / thing.scale * across).astype(np.float32)
        np.copyto(factors, lit, where=ids == number + 1)
    return factors


def _finish(pixels: np.ndarray, look: Look, dice: Dice) -> np.ndarray:
    """Effects on the whole image: uint8 [96, 96, 3] from float32."""
    if look.contrast != 1 or look.brightness:
        pixels = (pixels - 128) * look.contrast + (128 + look.brightness)
    if look.inverted:
        pixels = _inverted(pixels.clip(0, 255))
    if look.mosaic:
        cells = Image.fromarray(_bytes(pixels)).reduce(look.mosaic)
        pixels = np.asarray(cells.resize((SIDE, SIDE), Image.Resampling.NEAREST), dtype=np.float32)
    if look.blur:
        pixels = np.asarray(_blurred(_bytes(pixels), look.blur), dtype=np.float32)
    if look.noise:
        grain = np.stack([_noise_window(dice) for _ in range(3)], axis=2)
        pixels = pixels + np.float32(look.noise) * grain
    image = _bytes(pixels)
    return _compressed(image, look.jpeg) if look.jpeg else image


def _inverted(pixels: np.ndarray) -> np.ndarray:
    """Invert lightness; hue and saturation are kept."""
    red, green, blue = pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2]
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return pixels + (255 - highest - lowest)[:, :, None]


def _blurred(image: np.ndarray, radius: float) -> Image.Image:
    return Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))


@lru_cache(maxsize=1)
def _pixel_noise() -> np.ndarray:
    """Independent noise float32 [192, 192]: no two windows of it look alike."""
    return np.random.Generator(np.random.PCG64(7)).normal(0, 1, (FINE, FINE)).astype(np.float32)


def _noise_window(dice: Dice) -> np.ndarray:
    """A window [96, 96] of noise that is independent from pixel to pixel."""
    x, y = dice.integer(SIDE), dice.integer(SIDE)
    return _pixel_noise()[y : y + SIDE, x : x + SIDE]


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after JPEG compression."""
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "JPEG", quality=quality)
    return np.asarray(Image.open(memory).convert("RGB"))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).astype(np.uint8)
