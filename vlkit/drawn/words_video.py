"""Words for actions in the demo clips: verbs, ways, sentence frames and verb forms."""

from __future__ import annotations

WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "right": {
        "to": ("to the right", "towards the right", "rightwards", "from left to right"),
        "across": ("from left to right", "from the left side to the right side"),
        "start": ("from the left", "from the left side"),
        "out": ("on the right", "to the right", "at the right edge"),
    },
    "left": {
        "to": ("to the left", "towards the left", "leftwards", "from right to left"),
        "across": ("from right to left", "from the right side to the left side"),
        "start": ("from the right", "from the right side"),
        "out": ("on the left", "to the left", "at the left edge"),
    },
    "up": {
        "to": ("up", "upwards", "towards the top"),
        "across": ("from bottom to top", "upwards from below"),
        "start": ("from the bottom", "from below"),
        "out": ("at the top", "through the top"),
    },
    "down": {
        "to": ("down", "downwards", "towards the bottom"),
        "across": ("from top to bottom", "downwards from above"),
        "start": ("from the top", "from above"),
        "out": ("at the bottom", "through the bottom"),
    },
    "clockwise": {"round": ("clockwise", "in a clockwise direction")},
    "counterclockwise": {"round": ("counterclockwise", "anticlockwise", "in an anticlockwise direction")},
}
"""Replacements for the parts of :data:`VERBS` in braces, by the way of an event."""

VERBS: dict[str, tuple[str, ...]] = {
    "move": ("move {to}", "slide {to}", "glide {to}", "travel {to}", "go {to}"),
    "move up": ("rise", "float up", "climb higher"),
    "move down": ("sink", "come down", "drop lower"),
    "cross": ("cross the picture {across}", "move across the screen {across}", "pass by {across}"),
    "cross down": ("fall all the way {across}",),
    "cross up": ("fly all the way {across}",),
    "enter": ("come in {start}", "enter {start}", "arrive {start}", "slide into view {start}"),
    "leave": ("leave the picture {out}", "go out of view {out}", "exit {out}", "move out of the picture {out}"),
    "grow": ("grow", "get bigger", "become larger", "expand"),
    "shrink": ("shrink", "get smaller", "become smaller", "get tinier and tinier"),
    "spin": ("spin {round}", "rotate {round}", "make a full turn {round}"),
    "hop": ("hop up and down", "bounce up and down", "jump up and down"),
    "shake": ("shake from side to side", "wobble to the left and right", "tremble sideways"),
    "appear": ("appear", "show up", "fade in", "turn up out of nowhere"),
    "disappear": ("disappear", "vanish", "fade away", "fade out"),
    "recolour": ("turn {new}", "become {new}", "change its colour to {new}"),
    "become": ("turn into {new}", "become {new}", "change into {new}"),
    "behind": (
        "pass behind {other}",
        "move {to} behind {other}",
        "go behind {other}",
        "slide {to} past the back of {other}",
    ),
    "front": ("pass in front of {other}", "move {to} in front of {other}", "go {to} right before {other}"),
    "approach": ("move towards {other}", "approach {other}", "come closer to {other}", "move {to} up to {other}"),
    "retreat": ("move away from {other}", "back away from {other}", "move {to} away from {other}"),
    "orbit": ("circle {round} around {other}", "go round {other}", "move in a circle around {other}"),
    "swap": ("swap places with {other}", "change places with {other}", "trade places with {other}"),
    "land": ("land on {other}", "drop onto {other}", "fall on top of {other}", "come down on {other}"),
    "chase": ("chase {other} {to}", "follow {other} {to}", "run after {other} {to}"),
}
"""Phrases for a thing's action; additional ones for an action and a way."""

PLAIN: dict[str, tuple[str, ...]] = {
    "move": ("move", "move along", "change its place"),
    "cross": ("pass by", "move across the screen", "cross the picture"),
    "enter": ("come into view", "enter the picture", "arrive"),
    "leave": ("leave", "go out of view", "leave the picture"),
    "grow": ("grow", "get bigger", "change its size"),
    "shrink": ("shrink", "get smaller", "change its size"),
    "spin": ("spin", "rotate", "turn around itself"),
    "hop": ("hop", "bounce", "jump"),
    "shake": ("shake", "wobble", "tremble"),
    "appear": ("appear", "show up", "fade in"),
    "disappear": ("disappear", "vanish", "fade out"),
    "recolour": ("change its colour", "turn into another colour"),
    "become": ("change its shape", "turn into something else"),
    "behind": ("pass behind {other}", "go behind {other}", "pass {other}"),
    "front": ("pass in front of {other}", "move in front of {other}", "pass {other}"),
    "approach": ("approach {other}", "move towards {other}"),
    "retreat": ("move away from {other}", "back away from {other}"),
    "orbit": ("circle around {other}", "move around {other}"),
    "swap": ("swap places with {other}", "change places with {other}"),
    "land": ("land on {other}", "fall onto {other}"),
    "chase": ("chase {other}", "follow {other}"),
}
"""The same, with less detail and without a way."""

FRAMES = (
    "{s} {does}",
    "{s} is {doing}",
    "{s} {doing}",
    "there is {s} {doing}",
    "we see {s} {doing}",
    "a video of {s} {doing}",
    "a cartoon in which {s} {does}",
    "an animation showing {s} {doing}",
    "someone animated {s} {doing}",
)
"""Sentences of one event."""
SEQUELS = (
    "{s1} {does1} and then {does2}",
    "{s1} {does1} then it {does2}",
    "first {s1} {does1} and then it {does2}",
    "{s1} {does1} before {doing2}",
    "{s1} {does2} after {doing1}",
    "after {doing1} {s1} {does2}",
    "{s1} is {doing1} and afterwards it {does2}",
    "a video of {s1} {doing1} and then {doing2}",
)
"""Sentences of two events of one thing."""
TURNS = (
    "first {s1} {does1} and then {s2} {does2}",
    "{s1} {does1} and later {s2} {does2}",
    "{s1} {does1} before {s2} {does2}",
    "{s2} {does2} after {s1} {does1}",
    "after {s1} {does1} {s2} {does2}",
    "{s1} is {doing1} then {s2} {does2}",
)
"""Sentences of two events of two things."""
TOGETHER = (
    "{s1} {does1} while {s2} {does2}",
    "{s1} is {doing1} and at the same time {s2} {does2}",
    "as {s1} {does1} {s2} {does2}",
    "a video of {s1} {doing1} while {s2} is {doing2}",
    "{s1} {doing1} and {s2} {doing2}",
)
"""Sentences of two events at the same time."""

DOUBLED = frozenset({"spin", "hop", "get", "drop", "run", "swap"})
"""Verbs that double their last letter: ``spinning``."""


def third_person(verb: str) -> str:
    """``move to the right`` -> ``moves to the right``."""
    first, blank, rest = verb.partition(" ")
    if first.endswith(("s", "sh", "ch", "x", "o")):
        first += "es"
    elif first.endswith("y") and first[-2] not in "aeiou":
        first = f"{first[:-1]}ies"
    else:
        first += "s"
    return first + blank + rest


def gerund(verb: str) -> str:
    """``move to the right`` -> ``moving to the right``."""
    first, blank, rest = verb.partition(" ")
    if first in DOUBLED:
        first += first[-1]
    elif first.endswith("e") and not first.endswith("ee"):
        first = first[:-1]
    return f"{first}ing{blank}{rest}"
