"""Grounds of the second pre-training world: two colours, mixed by a field of weights."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from vlkit.drawn.dice import Dice
from vlkit.drawn.styles import Look

SIDE = 96
FIELDS = 40
"""Fields of smooth noise that are made once; each use shifts and turns one."""

_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[0:SIDE, 0:SIDE])


@cache
def noise_fields() -> tuple[np.ndarray, np.ndarray]:
    """Smooth and fine noise, float32 [FIELDS, 96, 96] each, mean 0, standard deviation 1; the same in every process."""
    rng = np.random.Generator(np.random.PCG64(20240607))
    smooth, fine = [], []
    for number in range(FIELDS):
        smooth.append(_field(rng, (3, 4, 6, 8, 12)[number % 5]))
        fine.append(_field(rng, (32, 48, 96)[number % 3]))
    return np.stack(smooth), np.stack(fine)


def _field(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Noise [96, 96] that varies over ``cells`` cells per side; its edges do not meet, which a shift shows."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    field = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def noise_field(dice: Dice, fine: bool) -> np.ndarray:
    """One of the fields float32 [96, 96], flipped or turned at random."""
    field = noise_fields()[int(fine)][dice.integer(FIELDS)]
    turns = dice.integer(8)
    field = field[::-1] if turns & 1 else field
    field = field[:, ::-1] if turns & 2 else field
    return field.T if turns & 4 else field


def ground_colours(look: Look, dice: Dice) -> tuple[np.ndarray, np.ndarray]:
    """First and second colour of a ground, float32 [3] each, 0 to 255."""
    low, high = (8, 70) if look.dark else (178, 256)
    first = np.array([dice.uniform(low, high) for _ in range(3)], dtype=np.float32)
    if not look.dark and dice.chance(0.25):
        first[:] = dice.uniform(225, 256)  # white paper, or nearly
    target = np.array([dice.uniform(0, 130) if look.dark else dice.uniform(110, 256) for _ in range(3)])
    return first, first + (target.astype(np.float32) - first) * look.bold


def weights(look: Look, dice: Dice) -> np.ndarray | float:
    """Share of the second colour, float32 [96, 96] or one number."""
    kind, angle = look.ground, dice.uniform(0, 2 * np.pi)
    if kind == "flat":
        return 0.0
    if kind in ("clouds", "grain"):
        return np.clip(0.5 + 0.4 * noise_field(dice, kind == "grain"), 0, 1)
    along = np.float32(np.cos(angle)) * _X + np.float32(np.sin(angle)) * _Y
    if kind == "gradient":
        return (along - along.min()) / (along.max() - along.min())
    period, shift = dice.uniform(7, 22), dice.uniform(0, 20)
    if kind == "stripes":
        return ((along + shift) % period < period * dice.uniform(0.2, 0.6)).astype(np.float32)
    x, y = (_X + shift) % period, (_Y + shift) % period
    if kind == "grid":
        return ((x < 1.2) | (y < 1.2)).astype(np.float32)
    if kind == "checks":
        return ((x < period / 2) ^ (y < period / 2)).astype(np.float32)
    if kind == "dots":
        radius = period * dice.uniform(0.12, 0.3)
        return ((x - period / 2) ** 2 + (y - period / 2) ** 2 < radius**2).astype(np.float32)
    cells = 3 + dice.integer(6)
    values = np.array([dice.random() for _ in range(cells * cells)], dtype=np.float32).reshape(cells, cells)
    index = np.arange(SIDE) * cells // SIDE
    return values[index][:, index]


def paint_ground(look: Look, dice: Dice, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The ground as float32 [96, 96, 3]."""
    share = np.broadcast_to(np.asarray(weights(look, dice), dtype=np.float32), (SIDE, SIDE))
    return first + share[:, :, None] * (second - first)
