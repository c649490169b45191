"""Shapes of man-made things: one function per kind lists its parts, back to front."""

from __future__ import annotations

import numpy as np

from vlkit.drawn.geometry import Part, annulus, arc, box, ellipse, form, stroke

Parts = list[Part]


def house() -> Parts:
    return [
        box(-0.75, -0.15, 0.75, 1),
        form([(0, -1), (1, -0.1), (-1, -0.1)], "shade"),
        box(-0.15, 0.35, 0.25, 1, "dark"),
        box(-0.6, 0.2, -0.28, 0.55, "white"),
    ]


def car() -> Parts:
    return [
        form([(-0.55, -0.1), (-0.35, -0.6), (0.35, -0.6), (0.6, -0.1)]),
        form([(-0.38, -0.1), (-0.25, -0.45), (-0.02, -0.45), (-0.02, -0.1)], "white"),
        form([(0.07, -0.1), (0.07, -0.45), (0.28, -0.45), (0.44, -0.1)], "white"),
        form([(-1, -0.1), (0.8, -0.1), (1, 0.05), (1, 0.42), (-1, 0.42)]),
        ellipse(-0.55, 0.42, 0.25, tone="dark"),
        ellipse(0.55, 0.42, 0.25, tone="dark"),
    ]


def cup() -> Parts:
    return [
        annulus(0.55, 0.05, 0.45, 0.24, "shade"),
        form([(-0.85, -0.75), (0.5, -0.75), (0.38, 0.8), (-0.73, 0.8)]),
        ellipse(-0.175, -0.72, 0.67, 0.16, "dark"),
    ]


def boat() -> Parts:
    return [
        box(-0.06, -1, 0.06, 0.35, "dark"),
        form([(0.1, -0.95), (0.85, 0.2), (0.1, 0.2)], "light"),
        form([(-0.1, -0.7), (-0.1, 0.2), (-0.7, 0.2)], "light"),
        form([(-1, 0.35), (1, 0.35), (0.6, 0.95), (-0.6, 0.95)]),
    ]


def umbrella() -> Parts:
    canopy = np.concatenate(
        [
            arc(0, 0, 1, 0.95, 180, 360, 16),
            arc(0.667, 0, 0.333, 0.16, 0, -180, 7),
            arc(0, 0, 0.333, 0.16, 0, -180, 7),
            arc(-0.667, 0, 0.333, 0.16, 0, -180, 7),
        ]
    )
    handle = np.concatenate([[(0, -0.9), (0, 0.75)], arc(0.2, 0.75, 0.2, 0.2, 180, 0, 8)])
    return [stroke(handle, 0.13, "dark"), form(canopy)]


def key() -> Parts:
    return [
        box(-0.25, -0.13, 0.95, 0.13),
        box(0.45, 0.13, 0.6, 0.45),
        box(0.78, 0.13, 0.95, 0.5),
        annulus(-0.55, 0, 0.45, 0.2),
    ]


def hat() -> Parts:
    return [
        form([(-0.5, -0.75), (0.5, -0.75), (0.56, 0.45), (-0.56, 0.45)]),
        box(-0.55, 0.12, 0.55, 0.38, "dark"),
        ellipse(0, 0.48, 1, 0.2),
    ]


def bell() -> Parts:
    side = np.concatenate(
        [arc(0, -0.3, 0.5, 0.5, 180, 360, 12), [(0.58, 0.3), (0.85, 0.62), (-0.85, 0.62), (-0.58, 0.3)]]
    )
    return [
        ellipse(0, 0.72, 0.2, tone="dark"),
        ellipse(0, -0.85, 0.14, tone="dark"),
        form(side),
        box(-0.72, 0.35, 0.72, 0.47, "shade"),
    ]


def chair() -> Parts:
    return [
        box(-0.6, 0.2, -0.42, 1, "dark"),
        box(0.42, 0.2, 0.6, 1, "dark"),
        box(-0.6, -1, -0.32, 0.2),
        box(-0.6, 0.05, 0.66, 0.32),
    ]


def table() -> Parts:
    return [box(-0.85, -0.3, -0.65, 0.75, "shade"), box(0.65, -0.3, 0.85, 0.75, "shade"), box(-1, -0.5, 1, -0.2)]


def lamp() -> Parts:
    return [
        box(-0.07, -0.1, 0.07, 0.8, "dark"),
        ellipse(0, 0.85, 0.5, 0.14, "dark"),
        form([(-0.35, -1), (0.35, -1), (0.75, 0.05), (-0.75, 0.05)]),
    ]


def ball() -> Parts:
    band = np.concatenate([arc(-0.95, 0, 0.75, 1.05, -64, 64, 12), arc(-0.95, 0, 1.25, 1.25, 52, -52, 12)])
    edge = arc(1.15, 0, 0.75, 1.2, 130, 230, 12)
    return [
        ellipse(0, 0, 1),
        form(band, "white"),
        form(np.concatenate([edge, arc(0, 0, 0.97, 0.97, -46, 46, 8)]), "dark"),
    ]


def balloon() -> Parts:
    return [
        stroke([(0, 0.5), (0.1, 0.65), (-0.08, 0.82), (0.04, 1)], 0.09, "dark"),
        form([(0, 0.36), (0.14, 0.58), (-0.14, 0.58)]),
        ellipse(0, -0.3, 0.62, 0.72),
        ellipse(-0.24, -0.55, 0.12, 0.2, "white"),
    ]


def kite() -> Parts:
    return [
        stroke([(0, 0.35), (0.2, 0.55), (-0.1, 0.75), (0.1, 1)], 0.1, "dark"),
        form([(0, -1), (0.7, -0.35), (0, 0.45), (-0.7, -0.35)]),
        form([(0, -1), (0.7, -0.35), (0, -0.35)], "light"),
        form([(0, -0.35), (0, 0.45), (-0.7, -0.35)], "light"),
    ]


def book() -> Parts:
    return [
        form([(0, -0.4), (0.95, -0.65), (0.95, 0.45), (0, 0.7)]),
        form([(0, -0.4), (-0.95, -0.65), (-0.95, 0.45), (0, 0.7)]),
        form([(0.14, -0.24), (0.78, -0.42), (0.78, 0.3), (0.14, 0.48)], "light"),
        form([(-0.14, -0.24), (-0.78, -0.42), (-0.78, 0.3), (-0.14, 0.48)], "light"),
        box(-0.05, -0.42, 0.05, 0.66, "dark"),
    ]


def bottle() -> Parts:
    return [
        form(
            [
                (-0.16, -0.85),
                (0.16, -0.85),
                (0.16, -0.4),
                (0.42, -0.1),
                (0.42, 1),
                (-0.42, 1),
                (-0.42, -0.1),
                (-0.16, -0.4),
            ]
        ),
        box(-0.2, -1, 0.2, -0.8, "dark"),
        box(-0.42, 0.2, 0.42, 0.65, "white"),
    ]


def clock() -> Parts:
    return [
        ellipse(0, 0, 1),
        ellipse(0, 0, 0.72, tone="white"),
        stroke([(0, 0.06), (0, -0.58)], 0.14, "dark"),
        stroke([(-0.06, 0), (0.46, 0.1)], 0.14, "dark"),
    ]


def candle() -> Parts:
    flame = np.concatenate([[(0, -1)], arc(0, -0.55, 0.2, 0.24, 0, 180, 10)])
    return [
        box(-0.3, -0.12, 0.3, 0.85),
        box(-0.04, -0.35, 0.04, -0.1, "dark"),
        form(flame, "light"),
        ellipse(0, 0.86, 0.65, 0.14, "dark"),
    ]


def rocket() -> Parts:
    body = np.concatenate(
        [[(0, -1)], arc(0, -0.1, 0.4, 0.6, -40, 30, 8), [(0.3, 0.6), (-0.3, 0.6)], arc(0, -0.1, 0.4, 0.6, 150, 220, 8)]
    )
    return [
        form([(-0.3, 0.1), (-0.75, 0.75), (-0.28, 0.6)], "shade"),
        form([(0.3, 0.1), (0.75, 0.75), (0.28, 0.6)], "shade"),
        form([(-0.2, 0.6), (0.2, 0.6), (0, 1.0)], "dark"),
        form(body),
        ellipse(0, -0.25, 0.19, tone="white"),
    ]


def snowman() -> Parts:
    return [
        ellipse(0, 0.5, 0.52),
        ellipse(0, -0.28, 0.36),
        box(-0.32, -0.66, 0.32, -0.55, "dark"),
        box(-0.2, -1, 0.2, -0.6, "dark"),
        ellipse(-0.13, -0.34, 0.07, tone="dark"),
        ellipse(0.13, -0.34, 0.07, tone="dark"),
        ellipse(0, 0.3, 0.08, tone="dark"),
        ellipse(0, 0.6, 0.08, tone="dark"),
    ]
