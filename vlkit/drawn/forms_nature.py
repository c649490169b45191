"""Shapes of plain forms, plants, animals and the sky: one function per kind lists its parts, back to front."""

from __future__ import annotations

import numpy as np

from vlkit.drawn.geometry import Part, annulus, arc, box, ellipse, form, sector, star_points, stroke

Parts = list[Part]


def circle() -> Parts:
    return [ellipse(0, 0, 1)]


def square() -> Parts:
    return [box(-0.9, -0.9, 0.9, 0.9)]


def triangle() -> Parts:
    return [form([(0, -0.95), (1, 0.85), (-1, 0.85)])]


def star() -> Parts:
    return [form(star_points(5, 1.05, 0.42))]


def heart() -> Parts:
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15 - 0.12
    return [form(np.stack([x, y], axis=1))]


def ring() -> Parts:
    return [annulus(0, 0, 1, 0.55)]


def cross() -> Parts:
    a, b = 0.34, 1.0
    corners = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return [form(corners)]


def diamond() -> Parts:
    return [form([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])]


def arrow() -> Parts:
    return [form([(-1, -0.28), (0.1, -0.28), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.28), (-1, 0.28)])]


def tree() -> Parts:
    return [
        box(-0.14, 0.3, 0.14, 1, "dark"),
        ellipse(-0.38, 0.0, 0.45),
        ellipse(0.38, 0.0, 0.45),
        ellipse(0, -0.45, 0.52),
    ]


def flower() -> Parts:
    petals = [ellipse(0.42 * np.cos(a), -0.35 + 0.42 * np.sin(a), 0.3) for a in np.radians(np.arange(5) * 72 - 90)]
    return [
        box(-0.07, 0, 0.07, 1, "dark"),
        ellipse(0.3, 0.68, 0.28, 0.13, "dark"),
        *petals,
        ellipse(0, -0.35, 0.2, tone="white"),
    ]


def mushroom() -> Parts:
    return [
        form([(-0.28, 0), (0.28, 0), (0.36, 0.95), (-0.36, 0.95)], "white"),
        sector(0, 0.12, 1, 1.05, 180, 360),
        ellipse(-0.42, -0.3, 0.17, tone="white"),
        ellipse(0.12, -0.55, 0.17, tone="white"),
        ellipse(0.5, -0.18, 0.15, tone="white"),
    ]


def cactus() -> Parts:
    return [
        stroke([(-0.65, -0.35), (-0.65, 0.15), (-0.5, 0.28), (0, 0.28)], 0.26),
        stroke([(0.65, -0.55), (0.65, -0.1), (0.5, 0.05), (0, 0.05)], 0.26),
        form(np.concatenate([arc(0, -0.72, 0.28, 0.28, 180, 360, 10), [(0.28, 0.6), (-0.28, 0.6)]])),
        form([(-0.45, 0.58), (0.45, 0.58), (0.32, 1), (-0.32, 1)], "dark"),
    ]


def leaf() -> Parts:
    blade = np.concatenate([arc(0.3, 0.1, 1.0, 0.95, 180, 270, 10), arc(-0.25, -0.6, 1.1, 0.9, 0, 90, 10)])
    return [form(blade), stroke([(-1, 1), (-0.6, 0.5), (0.35, -0.55)], 0.12, "dark")]


def apple() -> Parts:
    return [
        stroke([(0, -0.5), (0.05, -0.75), (0.15, -1)], 0.14, "dark"),
        form([(0.12, -0.72), (0.35, -1), (0.7, -0.95), (0.5, -0.68)], "dark"),
        ellipse(-0.32, 0.12, 0.56, 0.74),
        ellipse(0.32, 0.12, 0.56, 0.74),
        ellipse(-0.5, -0.15, 0.12, 0.2, "white"),
    ]


def fish() -> Parts:
    return [
        form([(0.35, 0), (1, -0.55), (0.88, 0), (1, 0.55)], "shade"),
        ellipse(-0.25, 0, 0.75, 0.5),
        ellipse(-0.62, -0.12, 0.11, tone="dark"),
    ]


def bird() -> Parts:
    return [
        form([(0.35, -0.1), (1, -0.45), (0.95, 0.05), (0.5, 0.35)], "shade"),
        box(-0.2, 0.5, -0.1, 0.95, "dark"),
        box(0.1, 0.5, 0.2, 0.95, "dark"),
        ellipse(0.05, 0.15, 0.62, 0.45),
        ellipse(-0.5, -0.4, 0.34),
        form([(-0.78, -0.5), (-1.05, -0.35), (-0.78, -0.25)], "dark"),
        form([(-0.1, 0), (0.6, -0.05), (0.25, 0.4)], "shade"),
        ellipse(-0.56, -0.46, 0.09, tone="dark"),
    ]


def cat() -> Parts:
    tail = arc(0.45, 0.45, 0.42, 0.5, 90, -70, 10)
    return [
        stroke(tail, 0.18, "body"),
        ellipse(-0.05, 0.5, 0.5, 0.5),
        form([(-0.62, -0.45), (-0.58, -1), (-0.15, -0.72)]),
        form([(0.42, -0.45), (0.38, -1), (-0.05, -0.72)]),
        ellipse(-0.1, -0.35, 0.54, 0.44),
        ellipse(-0.3, -0.4, 0.1, tone="dark"),
        ellipse(0.1, -0.4, 0.1, tone="dark"),
        form([(-0.2, -0.2), (0, -0.2), (-0.1, -0.08)], "dark"),
    ]


def moon() -> Parts:
    return [form(np.concatenate([arc(0, 0, 1, 1, 60, 300, 20), arc(0.42, 0, 0.8, 0.87, 270, 90, 16)]))]


def sun() -> Parts:
    return [form(star_points(8, 1.05, 0.62), "light"), ellipse(0, 0, 0.62)]
