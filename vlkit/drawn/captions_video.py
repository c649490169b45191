"""English sentences about a clip, all of them true, in the style of MSR-VTT: lower case, no punctuation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlkit.drawn.backgrounds import STYLES
from vlkit.drawn.captions_demo import PATTERN_WORDS, PLACES, SIZE_WORDS, colour_word, kind_word
from vlkit.drawn.clips import Clip, Event
from vlkit.drawn.graph import Thing, place
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import with_article
from vlkit.drawn.words_video import FRAMES, PLAIN, SEQUELS, TOGETHER, TURNS, VERBS, WAYS, gerund, third_person

LONGEST = 24
"""Maximum number of words in a sentence."""
TRIES = 60
"""Attempts at a sentence that is short enough and new."""
LEVELS = (0.15, 0.35, 0.5)
"""Shares of the levels of detail among the sentences of a clip."""


@dataclass(frozen=True)
class Clause:
    """Who does what: ``a red ball``, ``move to the right``."""

    subject: str
    verb: str

    def words(self, number: str = "") -> dict[str, str]:
        """Placeholders of a sentence frame: subject, present tense and gerund, marked by ``number``."""
        return {
            f"s{number}": self.subject,
            f"does{number}": third_person(self.verb),
            f"doing{number}": gerund(self.verb),
        }


def sentences(clip: Clip, rng: np.random.Generator, count: int = 20) -> list[str]:
    """``count`` different sentences, from plain to detailed; the last one mentions every event.

    Raises:
        ValueError: the clip is too simple for so many.
    """
    levels = [level for level, share in enumerate(LEVELS) for _ in range(round(share * count))]
    levels = (levels + [2] * count)[:count]
    found: dict[str, None] = {}
    for level in levels:
        for _ in range(TRIES):
            text = sentence(clip, rng, level)
            if text not in found and len(text.split()) <= LONGEST:
                found[text] = None
                break
            level = min(level + 1, 2)  # a plain level may have no new sentence left
    if len(found) < count:
        raise ValueError(f"found {len(found)} different sentences for a clip, not {count}: {clip.key()}")
    return list(found)


def sentence(clip: Clip, rng: np.random.Generator, level: int) -> str:
    """One sentence.

    Levels: 0 kinds, and roughly what one of them does, or only what is there; 1 colours and directions; 2 every event
    in order, and often sizes, patterns, what stands still and the setting.
    """
    if level == 0 and rng.random() < 0.25:
        text = _topic(clip, rng)
    elif level < 2 or len(clip.events) == 1:
        event = choose(rng, clip.events)
        text = choose(rng, FRAMES).format(**_clause(clip, event, rng, level).words())
    else:
        text = _story(clip, rng)
    if level and rng.random() < 0.2 and not text.endswith(" in"):  # "fading in in a room"
        words = STYLES[clip.scene.background.style].words
        text += f" {choose(rng, words)}" if words else ""
    if level == 2:
        text += _still(clip, rng)
    return text.replace("-", " ")


def _topic(clip: Clip, rng: np.random.Generator) -> str:
    shown = [int(i) for i in rng.permutation(len(clip.scene.things))][: choose(rng, (1, 2, 2))]
    names = " and ".join(_noun(clip, clip.scene.things[i], rng, 0) for i in shown)
    return choose(rng, ("a cartoon about ", "a clip with ", "an animation of ", "a short film about ")) + names


def _story(clip: Clip, rng: np.random.Generator) -> str:
    """Two events in their order, or at the same time."""
    first, second = (_clause(clip, event, rng, 2) for event in clip.events)
    if clip.together:
        if rng.random() < 0.5:
            first, second = second, first
        frames = TOGETHER
    else:
        frames = SEQUELS if clip.events[0].thing == clip.events[1].thing else TURNS
    return choose(rng, frames).format(**first.words("1"), **second.words("2"))


def _clause(clip: Clip, event: Event, rng: np.random.Generator, level: int) -> Clause:
    things = clip.scene.things
    verbs = PLAIN[event.action] if level == 0 else VERBS[event.action] + VERBS.get(f"{event.action} {event.way}", ())
    ways = WAYS.get(event.way, {})
    words = {name: choose(rng, options) for name, options in ways.items()}
    if event.action == "recolour":
        words["new"] = colour_word(event.ends[0][1], rng)
    elif event.action == "become":
        words["new"] = with_article(kind_word(event.way, rng))
    if event.other is not None:
        words["other"] = _noun(clip, things[event.other], rng, min(level, 1))
    return Clause(_noun(clip, things[event.thing], rng, level), choose(rng, verbs).format(**words))


def _noun(clip: Clip, thing: Thing, rng: np.random.Generator, level: int) -> str:
    """``a ball``, ``a navy ball``, ``a tiny striped navy ball``; no size for what grows or shrinks."""
    words = []
    number = clip.scene.things.index(thing)
    steady = not any(event.action in ("grow", "shrink") and event.thing == number for event in clip.events)
    if level == 2 and steady and thing.size != "medium" and rng.random() < 0.4:
        words.append(choose(rng, SIZE_WORDS[thing.size]))
    if level == 2 and thing.pattern != "plain" and rng.random() < 0.6:
        words.append(choose(rng, PATTERN_WORDS[thing.pattern]))
    if level > 0:
        words.append(colour_word(thing, rng))
    return with_article(" ".join([*words, kind_word(thing.kind, rng)]))


def _still(clip: Clip, rng: np.random.Generator) -> str:
    """Words about a thing without motion, or nothing."""
    busy = {event.thing for event in clip.events} | {event.other for event in clip.events}
    still = [thing for number, thing in enumerate(clip.scene.things) if number not in busy]
    if not still or rng.random() < 0.5:
        return ""
    thing = choose(rng, still)
    noun = _noun(clip, thing, rng, 1)
    where = choose(rng, PLACES[place(thing)])
    return choose(rng, (f" with {noun} {where}", f" and {noun} {where} stays still", f" and {noun} does not move"))
