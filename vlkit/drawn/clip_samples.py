"""Random clips of the demo domain: acting things, one or two events, and things without motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vlkit.drawn.clip_acts import FIRST, PAIRS, SECOND, SLIM, SOLO, Setting, Slot
from vlkit.drawn.clips import FADES, Clip, Event, things_at
from vlkit.drawn.graph import Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.scenes import choose, place_freely, sample_scene

LENGTHS = (2.0, 2.5, 3.0, 3.5, 4.0)
"""Seconds."""
RATES = (8, 10, 12)
"""Frames per second."""
FADE = 0.5
"""Maximum length of a fade, in seconds."""
TRIES = 25
"""Attempts to place a thing and its actions."""

Story = tuple[list[Thing], list[Event]]
Stories = Callable[[np.random.Generator, Scene, list[Thing], float], Story | None]


def sample_clip(rng: np.random.Generator) -> Clip:
    """Draw a clip at random; every choice comes from ``rng``."""
    while True:
        scene = sample_scene(rng, "demo")
        cast = _cast(rng, scene)
        seconds, fps = choose(rng, LENGTHS), choose(rng, RATES)
        story = choose(rng, _STORIES, _WEIGHTS)(rng, scene, cast, seconds)
        if story is None:
            continue
        things, events = story
        clip = Clip(_scene(scene, things), tuple(events), seconds, fps)
        extras = _extras(rng, clip, [thing for thing in cast if thing.kind not in _kinds(things, events)])
        return dataclasses.replace(clip, scene=_scene(scene, [*things, *extras]))


def _scene(scene: Scene, things: Sequence[Thing]) -> Scene:
    return dataclasses.replace(scene, things=tuple(things), on=())


def _cast(rng: np.random.Generator, scene: Scene) -> list[Thing]:
    """The scene's things in random order, one of each kind: "the bird" is then unambiguous."""
    kinds = {scene.things[int(i)].kind: scene.things[int(i)] for i in rng.permutation(len(scene.things))}
    return [dataclasses.replace(thing, angle=0.0) for thing in kinds.values()]


def _kinds(things: list[Thing], events: list[Event]) -> frozenset[str]:
    """Kinds that are seen at any time."""
    return frozenset(t.kind for t in things) | {end.kind for event in events for _, end in event.ends}


def _slot(action: str, rng: np.random.Generator, seconds: float, start: float, stop: float) -> Slot:
    """Seconds from fractions of the clip, a little shifted; fades are short."""
    begin, end = (round(seconds * (at + float(rng.uniform(-0.03, 0.03))), 2) for at in (start, stop))
    if action in FADES:
        middle, half = (begin + end) / 2, min(FADE, end - begin) / 2
        return round(middle - half, 2), round(middle + half, 2)
    return begin, end


def perform(
    rng: np.random.Generator, scene: Scene, thing: Thing, slots: list[tuple[str, Slot]], taken: Sequence[Thing]
) -> Story | None:
    """One thing at a random place that performs the actions of ``slots`` in turn, clear of all states in ``taken``."""
    for _ in range(TRIES):
        placed = place_freely(rng, thing, taken)
        if placed is None:
            return None
        begin: Thing | None = None
        now, events = placed, list[Event]()
        for action, slot in slots:
            kinds = frozenset({thing.kind, *(other.kind for other in taken)})
            act = SOLO[action](rng, now, Setting(scene.background, slot, begin is None, kinds))
            if act is None:
                break
            begin = begin or act[0]
            events.append(act[1])
            now = act[1].ends[0][1] if act[1].ends else act[0]
        if begin is not None and len(events) == len(slots):
            trace = _trace(scene, [begin], events, slots[-1][1][1])
            if all(_clear(state, other) for state in trace for other in taken):
                return [begin], events
    return None


def _trace(scene: Scene, things: list[Thing], events: list[Event], seconds: float, steps: int = 12) -> list[Thing]:
    """States of all things at evenly spaced times."""
    clip = Clip(_scene(scene, things), tuple(events), seconds, 1)
    found: list[Thing] = []
    for time in np.linspace(0, seconds, steps + 1):
        before, after, _ = things_at(clip, float(time))
        found += [*before.values(), *after.values()]
    return found


def _clear(a: Thing, b: Thing, gap: float = 0.9) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= gap * (a.scale + b.scale) / 2


def _solo(rng: np.random.Generator, scene: Scene, cast: list[Thing], seconds: float) -> Story | None:
    """One thing performs one action."""
    action = choose(rng, SOLO)
    return perform(rng, scene, cast[0], [(action, _slot(action, rng, seconds, 0.15, 0.85))], [])


def _sequel(rng: np.random.Generator, scene: Scene, cast: list[Thing], seconds: float) -> Story | None:
    """One thing performs two actions in turn."""
    first = choose(rng, FIRST)
    second = choose(rng, [action for action in SECOND if action != first or action == "move"])
    slots = _turns(rng, first, second, seconds)
    story = perform(rng, scene, cast[0], slots, [])
    if story and first == second and story[1][0].way == story[1][1].way:
        return None  # moving right and then right again is one move
    return story


def _turns(rng: np.random.Generator, first: str, second: str, seconds: float) -> list[tuple[str, Slot]]:
    return [(first, _slot(first, rng, seconds, 0.08, 0.44)), (second, _slot(second, rng, seconds, 0.56, 0.92))]


def _duet(rng: np.random.Generator, scene: Scene, cast: list[Thing], seconds: float, together: bool) -> Story | None:
    """Two things perform one action each, in turn or at the same time."""
    if len(cast) < 2:
        return None
    actions = [action for action in SOLO if not (together and action in FADES)]
    first, second = choose(rng, actions), choose(rng, actions)
    slots = _turns(rng, first, second, seconds)
    if together:
        slot = _slot(first, rng, seconds, 0.15, 0.85)
        slots = [(first, slot), (second, slot)]
    one = perform(rng, scene, cast[0], slots[:1], [])
    if one is None:
        return None
    trace = _trace(scene, *one, seconds)
    two = perform(rng, scene, cast[1], slots[1:], trace)
    if two is None or one[1][0].way == cast[1].kind:
        return None
    event = two[1][0]
    ends = tuple((1, end) for _, end in event.ends)
    return [*one[0], *two[0]], [*one[1], dataclasses.replace(event, thing=1, ends=ends)]


def _in_turn(rng: np.random.Generator, scene: Scene, cast: list[Thing], seconds: float) -> Story | None:
    return _duet(rng, scene, cast, seconds, together=False)


def _together(rng: np.random.Generator, scene: Scene, cast: list[Thing], seconds: float) -> Story | None:
    return _duet(rng, scene, cast, seconds, together=True)


def _pair(rng: np.random.Generator, scene: Scene, cast: list[Thing], seconds: float) -> Story | None:
    """One thing performs an action with another."""
    if len(cast) < 2:
        return None
    thing, other = cast[:2]
    action = choose(rng, PAIRS)
    kinds = {
        "land": [name for name, kind in KINDS.items() if kind.top is not None],
        "behind": [name for name in KINDS if name not in SLIM],
    }.get(action, [other.kind])
    if other.kind not in kinds:
        other = dataclasses.replace(other, kind=choose(rng, [name for name in kinds if name != thing.kind]))
    begin, other, event = PAIRS[action](rng, thing, other, _slot(action, rng, seconds, 0.15, 0.85))
    if action != "behind":
        # Things are numbered back to front: moving things are in front.
        ends = tuple((1 - number, end) for number, end in event.ends)
        return [other, begin], [dataclasses.replace(event, thing=1, other=0, ends=ends)]
    return [begin, other], [event]


def _extras(rng: np.random.Generator, clip: Clip, cast: list[Thing]) -> list[Thing]:
    """Up to two things that stand where nothing moves."""
    taken = _trace(clip.scene, list(clip.scene.things), list(clip.events), clip.seconds)
    found: list[Thing] = []
    for thing in cast[: choose(rng, (0, 1, 2), (0.35, 0.45, 0.2))]:
        placed = place_freely(rng, thing, [*taken, *found])
        if placed is not None:
            found.append(placed)
    return found


_STORIES: tuple[Stories, ...] = (_solo, _sequel, _in_turn, _together, _pair)
_WEIGHTS = (0.24, 0.22, 0.18, 0.1, 0.26)
