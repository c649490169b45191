"""Outlines of simple forms as polygons, from which everything in the demo world is drawn.

Local coordinates: x to the right, y down, a kind fills about [-1, 1] x [-1, 1]. Points are float64 [n, 2].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Tone = Literal["body", "shade", "light", "dark", "white"]
"""Colour role of a part: the thing's own colour, a darker or lighter one of it, near black, white."""


@dataclass(frozen=True, eq=False)
class Part:
    """One filled form of a kind.

    Attributes:
        points: float64 [n, 2], the filled polygon; a hole is joined to the outside by a zero-width bridge.
        tone: colour role.
        contours: the lines to draw when things are outlined; one, or two for a form with a hole.
    """

    points: np.ndarray
    tone: Tone
    contours: tuple[np.ndarray, ...]


def form(points: Sequence[Sequence[float]] | np.ndarray, tone: Tone = "body") -> Part:
    """A polygon from its corners."""
    points = np.asarray(points, dtype=np.float64)
    return Part(points, tone, (points,))


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, count: int = 24) -> np.ndarray:
    """Points [count, 2] on an ellipse, from ``start`` to ``stop`` degrees (0 = right, 90 = down)."""
    closed = abs(stop - start) >= 360
    angles = np.radians(np.linspace(start, stop, count, endpoint=not closed))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def ellipse(x: float, y: float, rx: float, ry: float | None = None, tone: Tone = "body") -> Part:
    """A filled ellipse (a disc without ``ry``)."""
    return form(arc(x, y, rx, rx if ry is None else ry), tone)


def box(left: float, top: float, right: float, bottom: float, tone: Tone = "body") -> Part:
    """A filled upright rectangle."""
    return form([(left, top), (right, top), (right, bottom), (left, bottom)], tone)


def sector(x: float, y: float, rx: float, ry: float, start: float, stop: float, tone: Tone = "body") -> Part:
    """The part of an ellipse cut off by the chord between two angles; half a disc for 180 degrees."""
    return form(arc(x, y, rx, ry, start, stop, 16), tone)


def annulus(x: float, y: float, outer: float, inner: float, tone: Tone = "body") -> Part:
    """A ring with a real hole."""
    outside, inside = arc(x, y, outer, outer), arc(x, y, inner, inner)
    bridged = np.concatenate([outside, outside[:1], inside[:1], inside[::-1]])
    return Part(bridged, tone, (outside, inside))


def star_points(count: int, outer: float, inner: float, start: float = -90) -> np.ndarray:
    """Corners [2 * count, 2] of a star around the origin, first spike at ``start`` degrees."""
    angles = np.radians(start + np.arange(2 * count) * 180 / count)
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def stroke(points: Sequence[Sequence[float]] | np.ndarray, width: float, tone: Tone = "body") -> Part:
    """A line of the given width through ``points`` as a filled band."""
    path = np.asarray(points, dtype=np.float64)
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width / 2)
    return form(np.concatenate([path + side, (path - side)[::-1]]), tone)
