"""Graphs of the demo world's clips: things, their actions over time, and what is visible at any time.

A clip is a scene (its things as they are at the start, or where they wait outside) and events in order of time.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from vlkit.drawn.draw import draw
from vlkit.drawn.graph import Scene, Thing, scene_from_json

SoloAction = Literal[
    "move", "cross", "enter", "leave", "grow", "shrink", "spin", "hop", "shake",
    "appear", "disappear", "recolour", "become",
]  # fmt: skip
PairAction = Literal["behind", "front", "approach", "retreat", "orbit", "swap", "land", "chase"]
Action = SoloAction | PairAction

FADES: frozenset[str] = frozenset({"appear", "disappear", "recolour", "become"})
"""Actions shown as a cross-fade of two images; at most one of them may be active at a time."""
REACH = 0.75
"""A thing whose centre is this many of its own widths outside the image is not seen at all, at any angle."""
HOP, SHAKE = 0.14, 0.06
"""How far a thing jumps up and is shaken sideways, fractions of the image."""


@dataclass(frozen=True)
class Event:
    """An action of one thing, alone or with another.

    Attributes:
        action: what it does.
        thing: number of the thing in the scene.
        start, stop: seconds.
        way: where the motion goes (``right``, ``left``, ``up``, ``down``), how it turns (``clockwise``,
            ``counterclockwise``), the new colour (recolour) or the new kind (become); empty where there is no choice.
        other: number of the second thing.
        ends: (number, how that thing is afterwards); things that end as they began are left out.
    """

    action: Action
    thing: int
    start: float
    stop: float
    way: str = ""
    other: int | None = None
    ends: tuple[tuple[int, Thing], ...] = ()

    def progress(self, time: float) -> float:
        """0 before the event, 1 after it."""
        return min(1.0, max(0.0, (time - self.start) / (self.stop - self.start)))


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn.

    Attributes:
        scene: background and things at the start; one that appears later is as it will be then.
        events: in order of their start.
        seconds: length.
        fps: frames a second.
    """

    scene: Scene
    events: tuple[Event, ...]
    seconds: float
    fps: int

    @property
    def frames(self) -> int:
        """Number of frames."""
        return round(self.seconds * self.fps)

    @property
    def together(self) -> bool:
        """Whether events overlap in time."""
        return len(self.events) > 1 and self.events[1].start < self.events[0].stop

    def key(self) -> str:
        """Things (colour and kind) and their actions in order: clips with the same key must not be in different splits.

        Places, sizes, patterns, background and things without motion do not count.
        """
        names = [f"{thing.colour} {thing.kind}" for thing in self.scene.things]
        events = []
        for event in self.events:
            who = [names[event.thing]] if event.other is None else [names[event.thing], names[event.other]]
            events.append([event.action, event.way, *(sorted(who) if event.action == "swap" else who)])
        return json.dumps(["together", *sorted(events)] if self.together else events)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; :func:`clip_from_json` reads them back."""
        return dataclasses.asdict(self)


def clip_from_json(value: dict[str, Any]) -> Clip:
    """The clip that :meth:`Clip.to_json` wrote."""
    events = []
    for fields in value["events"]:
        ends = tuple((int(number), Thing(**thing)) for number, thing in fields["ends"])
        events.append(Event(**{**fields, "ends": ends}))
    return Clip(scene_from_json(value["scene"]), tuple(events), value["seconds"], value["fps"])


def draw_frame(clip: Clip, number: int, size: int = 96) -> Image.Image:
    """Frame ``number`` (from 0) as an RGB image [size, size]."""
    before, after, weight = things_at(clip, number / clip.fps)
    image = _draw(clip.scene, before, size)
    return Image.blend(image, _draw(clip.scene, after, size), weight) if weight else image


def _draw(scene: Scene, things: dict[int, Thing], size: int) -> Image.Image:
    seen = tuple(things[number] for number in sorted(things) if in_view(things[number]))
    return draw(dataclasses.replace(scene, things=seen), size)


def in_view(thing: Thing) -> bool:
    """Whether any part of a thing may be inside the image."""
    reach = REACH * thing.scale
    return -reach < thing.x < 1 + reach and -reach < thing.y < 1 + reach


def things_at(clip: Clip, time: float) -> tuple[dict[int, Thing], dict[int, Thing], float]:
    """Things that are present ``time`` seconds after the start, by number.

    Returns:
        The things; the things after the current fade (else the same); the progress of that fade, 0 to 1.
    """
    appearing = {event.thing for event in clip.events if event.action == "appear"}
    now = {number: thing for number, thing in enumerate(clip.scene.things) if number not in appearing}
    fade: tuple[Event, float] | None = None
    for event in clip.events:
        progress = event.progress(time)
        if event.action in FADES and 0 < progress < 1:
            fade = event, progress
        elif progress > 0:
            _apply(event, progress, now)
    if fade is None:
        return now, now, 0.0
    after = dict(now)
    _apply(fade[0], 1.0, after)
    return now, after, fade[1]


def _apply(event: Event, progress: float, now: dict[int, Thing]) -> None:
    """Bring the things in ``now`` from their states before the event to those at ``progress``."""
    if event.action == "disappear":
        del now[event.thing]
    for number, end in event.ends:
        now[number] = _between(now[number], end, progress) if progress < 1 else end
    if event.action in _PATHS and progress < 1:
        now[event.thing] = _PATHS[event.action](now[event.thing], event, progress, now)


def _between(thing: Thing, end: Thing, progress: float) -> Thing:
    """Place, size and turn between two states; the motion starts and stops softly."""
    weight = progress * progress * (3 - 2 * progress)
    names = ("x", "y", "scale", "angle")
    values = {name: getattr(thing, name) + (getattr(end, name) - getattr(thing, name)) * weight for name in names}
    return dataclasses.replace(thing, **values)


def _spin(thing: Thing, event: Event, progress: float, now: dict[int, Thing]) -> Thing:
    return dataclasses.replace(thing, angle=thing.angle + _sign(event) * 360 * progress)


def _hop(thing: Thing, event: Event, progress: float, now: dict[int, Thing]) -> Thing:
    return dataclasses.replace(thing, y=thing.y - HOP * abs(math.sin(3 * math.pi * progress)))


def _shake(thing: Thing, event: Event, progress: float, now: dict[int, Thing]) -> Thing:
    return dataclasses.replace(thing, x=thing.x + SHAKE * math.sin(6 * math.pi * progress))


def _orbit(thing: Thing, event: Event, progress: float, now: dict[int, Thing]) -> Thing:
    centre = now[event.other if event.other is not None else event.thing]
    dx, dy, angle = thing.x - centre.x, thing.y - centre.y, _sign(event) * 2 * math.pi * progress
    cos, sin = math.cos(angle), math.sin(angle)
    return dataclasses.replace(thing, x=centre.x + dx * cos - dy * sin, y=centre.y + dx * sin + dy * cos)


def _sign(event: Event) -> int:
    return 1 if event.way == "clockwise" else -1


_PATHS: dict[str, Callable[[Thing, Event, float, dict[int, Thing]], Thing]] = {
    "spin": _spin,
    "hop": _hop,
    "shake": _shake,
    "orbit": _orbit,
}
"""Ways to move that end where they began."""
