"""Films of the demo world: half a minute to a minute and a half with several events, most of the time nothing happens.

One camera looks at one place. Actors come one at a time, act and are gone; sentences describe some of them. Others are
distractors: of the same kind in another colour, or of the same colour and another kind. Times are multiples of two
seconds, the clips of QVHighlights. As there, whose evaluation has groups up to 10, up to 30 and above 30 seconds, no
length is typical: windows of one length miss many moments by more than half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlkit.drawn.captions_video import sentence
from vlkit.drawn.clip_samples import perform
from vlkit.drawn.clips import Clip, Event, draw_frame
from vlkit.drawn.graph import Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.scenes import choose, place_freely, sample_scene
from vlkit.drawn.words import COLOURS

CLIP_SECONDS = 2
RATE = 6
"""Frames per second."""
SHORTEST, LONGEST = 15, 45
"""Length of a film in clips of two seconds."""
EVENT = (1, 15)
"""Least and most clips of an event; every doubling of the length is equally likely."""
LEAST_PARTS = 3
"""An event fills at most one of so many equal parts of a film."""
BUSY = 0.7
"""Largest share of a film in which something happens."""
ACTIONS = ("move", "grow", "shrink", "spin", "hop", "shake")
"""Actions during which a thing is seen from the first moment to the last."""
PHRASINGS = 2
"""Sentences about each actor of a training film."""
ANNOTATORS = 3
HIGHEST = 4
"""Largest saliency score of an annotator."""


@dataclass(frozen=True)
class Shot:
    """A part of a film in which an actor is seen.

    Attributes:
        first: its first clip.
        clips: number of clips.
        actor: number of the actor in the film.
        action: what is seen, from 0 to the length of the shot in seconds.
    """

    first: int
    clips: int
    actor: int
    action: Clip


@dataclass(frozen=True)
class Query:
    """A sentence and where it is true.

    Attributes:
        text: about an actor.
        shots: the shots of that actor, in order of time.
        saliency: per clip of these shots its number and the scores of three annotators, 1..4.
    """

    text: str
    shots: tuple[Shot, ...]
    saliency: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def windows(self) -> list[list[int]]:
        """Start and end of each shot in seconds, in order; shots without a gap between them are one window."""
        found: list[list[int]] = []
        for shot in sorted(self.shots, key=lambda shot: shot.first):
            start, end = shot.first * CLIP_SECONDS, (shot.first + shot.clips) * CLIP_SECONDS
            if found and found[-1][1] == start:
                found[-1][1] = end
            else:
                found.append([start, end])
        return found


@dataclass(frozen=True)
class Film:
    """A film before it is drawn.

    Attributes:
        scene: what is there all the time.
        clips: length in clips of two seconds.
        shots: in order of time; they do not overlap.
        queries: sentences about some of the actors.
    """

    scene: Scene
    clips: int
    shots: tuple[Shot, ...]
    queries: tuple[Query, ...]

    @property
    def seconds(self) -> int:
        """Length in seconds."""
        return self.clips * CLIP_SECONDS


def sample_film(rng: np.random.Generator, training: bool = False) -> Film:
    """Draw a film at random; every choice comes from ``rng``.

    Args:
        rng: the only source of chance.
        training: :data:`PHRASINGS` sentences describe every actor, distractors too, instead of one some of them.
    """
    while True:
        scene = sample_scene(rng, "demo")
        cast = [dataclasses.replace(thing, angle=0.0) for thing in scene.things]
        still = _still(rng, cast[2:4])
        scene = dataclasses.replace(scene, things=tuple(still), on=())
        clips = int(rng.integers(SHORTEST, LONGEST + 1))
        actors = _actors(rng, scene, cast)
        acts = _acts(rng, scene, actors, clips)
        if acts:
            shots = _placed(rng, acts, clips)
            asked = [number for number, (_, wanted) in enumerate(actors) if wanted or training]
            asked = asked * (PHRASINGS if training else 1)
            queries = [_query(rng, scene, number, shots) for number in asked]
            return Film(scene, clips, tuple(shots), tuple(query for query in queries if query))


def film_frames(film: Film, side: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 [side, side, 3]) of every frame; a still one is drawn once."""
    idle = Clip(film.scene, (), 1.0, RATE)
    nothing = np.asarray(draw_frame(idle, 0, side))
    per_clip = CLIP_SECONDS * RATE
    shown = {clip: shot for shot in film.shots for clip in range(shot.first, shot.first + shot.clips)}
    for number in range(film.clips * per_clip):
        shot = shown.get(number // per_clip)
        if shot is None:
            yield number, nothing
        else:
            yield number, np.asarray(draw_frame(shot.action, number - shot.first * per_clip, side))


def _still(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    """Small things that stand there all the time, where there is room for them."""
    found: list[Thing] = []
    for thing in things[: choose(rng, (0, 1, 2))]:
        placed = place_freely(rng, dataclasses.replace(thing, scale=min(thing.scale, 0.22)), found)
        if placed is not None:
            found.append(placed)
    return found


def _actors(rng: np.random.Generator, scene: Scene, cast: list[Thing]) -> list[tuple[Thing, bool]]:
    """Things that act, and whether a sentence describes them; none looks like another, or like what stands there."""
    taken = {(thing.kind, thing.colour) for thing in scene.things}
    found: list[tuple[Thing, bool]] = []

    def add(thing: Thing, asked: bool) -> None:
        if (thing.kind, thing.colour) not in taken:
            taken.add((thing.kind, thing.colour))
            found.append((thing, asked))

    colours = sorted({thing.colour for thing in cast}) if len({thing.colour for thing in cast}) > 1 else list(COLOURS)
    for thing in cast[: choose(rng, (2, 3, 4), (0.3, 0.4, 0.3))]:
        other = choose(rng, [name for name in KINDS if name != thing.kind])
        add(dataclasses.replace(thing, kind=choose(rng, (thing.kind, other)), scale=max(thing.scale, 0.24)), True)
    for thing, _ in list(found):
        if rng.random() < 0.35:
            colour = choose(rng, [name for name in colours if name != thing.colour] or list(COLOURS))
            add(dataclasses.replace(thing, colour=colour), False)
        if rng.random() < 0.25:
            kind = choose(rng, [name for name in KINDS if name != thing.kind])
            add(dataclasses.replace(thing, kind=kind), False)
    return found


def _acts(
    rng: np.random.Generator, scene: Scene, actors: list[tuple[Thing, bool]], clips: int
) -> list[tuple[int, int, Clip]]:
    """(actor, clips, action) in random order, as many as fit; an actor may come twice and does the same again."""
    found: list[tuple[int, int, Clip]] = []
    room = int(BUSY * clips)
    for number, (thing, asked) in enumerate(actors):
        action, way = choose(rng, ACTIONS, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12)), None
        for _ in range(2 if asked and rng.random() < 0.3 else 1):
            length = _length(rng, min(EVENT[1], clips // LEAST_PARTS))
            seconds = float(length * CLIP_SECONDS)
            story = perform(rng, scene, thing, [(action, (0.0, seconds))], list(scene.things))
            if story is None or length > room or way not in (None, story[1][0].way):
                continue  # the sentence must fit both times
            room, way = room - length, story[1][0].way
            found.append((number, length, _in_scene(scene, *story, seconds)))
    return [found[int(k)] for k in rng.permutation(len(found))]


def _length(rng: np.random.Generator, most: int) -> int:
    """Clips of an event, ``EVENT[0]..most``, log-uniform."""
    low, high = np.log(EVENT[0]), np.log(max(most, EVENT[0]) + 1)
    return int(np.exp(rng.uniform(low, high)))


def _in_scene(scene: Scene, things: list[Thing], events: list[Event], seconds: float) -> Clip:
    """The actor in front of what stands there."""
    first = len(scene.things)
    moved = [
        dataclasses.replace(e, thing=first + e.thing, ends=tuple((first + n, end) for n, end in e.ends)) for e in events
    ]
    return Clip(dataclasses.replace(scene, things=(*scene.things, *things)), tuple(moved), seconds, RATE)


def _placed(rng: np.random.Generator, acts: list[tuple[int, int, Clip]], clips: int) -> list[Shot]:
    """The acts in turn, with the free clips distributed at random before, between and behind them."""
    free = clips - sum(length for _, length, _ in acts)
    cuts = np.sort(rng.integers(0, free + 1, size=len(acts)))
    shots, busy = [], 0
    for cut, (number, length, action) in zip(cuts.tolist(), acts, strict=True):
        shots.append(Shot(cut + busy, length, number, action))
        busy += length
    return shots


def _query(rng: np.random.Generator, scene: Scene, actor: int, shots: list[Shot]) -> Query | None:
    own = tuple(shot for shot in shots if shot.actor == actor)
    if not own:
        return None
    bias = rng.normal(0, 0.35, size=ANNOTATORS)
    scores: list[tuple[int, tuple[int, ...]]] = []
    for shot in own:
        scale = shot.action.scene.things[len(scene.things)].scale
        for clip in range(shot.clips):
            # What is large, and well under way, is the better highlight.
            middle = 1 - abs((clip + 0.5) / shot.clips - 0.5) * 2
            value = 2.3 + 1.6 * middle + 3.0 * (scale - 0.3) + bias + rng.normal(0, 0.3, size=ANNOTATORS)
            scores.append((shot.first + clip, tuple(np.clip(np.round(value), 1, HIGHEST).astype(int).tolist())))
    return Query(sentence(own[0].action, rng, 1), own, tuple(scores))
