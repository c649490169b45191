"""Pairs of sentences about scenes: natural-language inference and paraphrase, decided by the scene graph.

The words alone do not decide. First sentences say the same sorts of things under every label: one attribute of both
things, the other of one, and mostly how they stand. Seconds have the same words, or one more or less: roles, relations,
colours and sizes change places, and a sentence is turned round and stays true. So which words there are, and which are
shared, new or left out, says little of the label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from vlkit.data.boxes import Record
from vlkit.data.sources.prepare import Source
from vlkit.data.text_task import TextTask
from vlkit.drawn.accounts import (
    INVERSE,
    VALUES,
    VERDICTS,
    Account,
    Said,
    Verdict,
    exchanged,
    moved,
    reworded,
    turned,
    verdict_of,
)
from vlkit.drawn.dice import Dice
from vlkit.drawn.graph import Scene, relation
from vlkit.drawn.world import COUNTS, Style, WorldSize, generator, sample_scenes

STREAM = 7
"""Stream number of these sentences among an image's generators (:func:`vlkit.drawn.world.generator`)."""
PairKind = Literal["inference", "paraphrase"]
ATTRIBUTES = ("colour", "size")
TASKS: dict[PairKind, TextTask] = {
    "inference": TextTask(
        "inference",
        ("premise:", "hypothesis:"),
        "classification",
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
    ),
    "paraphrase": TextTask(
        "paraphrase", ("sentence1:", "sentence2:"), "classification", ("different", "same"), ("accuracy", "f1")
    ),
}
"""Kind of pairs -> the task."""


LABELS: dict[PairKind, dict[Verdict, str]] = {
    "inference": {
        "equal": "entailment",
        "less": "entailment",
        "more": "neutral",
        "open": "neutral",
        "false": "contradiction",
    },
    "paraphrase": {verdict: "same" if verdict == "equal" else "different" for verdict in VERDICTS},
}
"""Kind of pairs -> what the second sentence says, measured by the first -> label."""
Change = Callable[[Account, Dice], Account | None]


def source_of(kind: PairKind, seed: int, size: WorldSize, style: Style) -> Source:
    """The pairs of a whole world, one of each label per scene that has two things to compare."""
    source = Source(f"demo-{kind}", "text", {}, {"world": [seed, size, style], "pairs": kind})
    for split, scenes in sample_scenes(seed, COUNTS[size], style).items():
        records = []
        for index, scene in enumerate(scenes):
            found = pairs_of(scene, generator(seed, split, index, STREAM), kind)
            records += [{"id": f"{split}/{index}/{number}", **record} for number, record in enumerate(found)]
        source.splits[split] = records
    source.extra = {"text": TASKS[kind].to_dict()}
    return source


def pairs_of(scene: Scene, rng: np.random.Generator, kind: PairKind) -> list[Record]:
    """One pair of each label about two things of a scene, without ``id``.

    Empty if no two things differ in kind and colour and stand in a clear relation.
    """
    dice = Dice(rng)
    found = _two_things(scene, dice)
    if found is None:
        return []
    records = []
    for label in TASKS[kind].labels:
        changes = CHANGES[kind][label]
        while True:
            # Each label has a premise of its own, so its form says nothing about the label.
            premise = _premise(scene, *found, dice)
            name = dice.weighted(tuple(changes), [share for share, _ in changes.values()])
            second = changes[name][1](premise, dice)
            if second is None or LABELS[kind][verdict_of(premise, second)] != label:
                continue
            if kind == "inference" and label != "entailment" and dice.chance(0.5):
                shorter = _less(second, dice)
                if shorter and LABELS[kind][verdict_of(premise, shorter)] == label:
                    second = shorter
            if name not in ("relation", "roles") and (kind == "paraphrase" or dice.chance(0.5)):
                second = _turned(second)
            texts = premise.text(dice), second.text(dice)
            if len({text.split().count("an") for text in texts}) > 1:
                continue  # an article would tell that a word has moved
            records.append({"text": texts[0], "text2": texts[1], "label": label, "change": name})
            break
    return records


def _two_things(scene: Scene, dice: Dice) -> tuple[int, int] | None:
    order = dice.shuffled(range(len(scene.things)))
    for i in order:
        for j in order:
            one, other = scene.things[i], scene.things[j]
            if one.kind != other.kind and one.colour != other.colour and relation(scene, i, j) in INVERSE:
                return i, j
    return None


def _premise(scene: Scene, i: int, j: int, dice: Dice) -> Account:
    """One attribute of both, in which they differ, and the other one of one of them: every change can be made."""
    both = [scene.things[i], scene.things[j]]
    whole = dice.one_of([name for name in ATTRIBUTES if getattr(both[0], name) != getattr(both[1], name)])
    rest, told = ATTRIBUTES[1 - ATTRIBUTES.index(whole)], dice.integer(2)
    things = tuple(
        Said(thing.kind, **{whole: getattr(thing, whole)}, **({rest: getattr(thing, rest)} if place == told else {}))
        for place, thing in enumerate(both)
    )
    related = (things[0].kind, str(relation(scene, i, j)), things[1].kind) if dice.chance(0.8) else None
    return Account(things, related)


def _turned(account: Account) -> Account:
    """The same, said from the other thing."""
    return Account(account.things[::-1], account.related and turned(account.related))


# --- changes: an account -> another one, or None if it does not apply ------------------------------------------------


def _same(account: Account, dice: Dice) -> Account | None:
    return account


def _less(account: Account, dice: Dice) -> Account | None:
    """Something said is left out."""
    ways = [
        account.with_value(thing.kind, name, None)
        for thing in account.things
        for name in ATTRIBUTES
        if getattr(thing, name)
    ]
    if account.related:
        ways.append(replace(account, related=None))
    return dice.one_of(ways) if ways else None


def _more(account: Account, dice: Dice) -> Account | None:
    """Something is said that the premise leaves open, true of the scene or not."""
    ways = [(thing, name) for thing in account.things for name in ATTRIBUTES if not getattr(thing, name)]
    if not ways:
        return None
    thing, name = dice.one_of(ways)
    return account.with_value(thing.kind, name, dice.one_of(VALUES[name]))


def _relation(account: Account, dice: Dice) -> Account | None:
    """The relation is the opposite one."""
    if account.related is None:
        return None
    first, word, second = account.related
    return replace(account, related=(first, INVERSE[word], second))


def _roles(account: Account, dice: Dice) -> Account | None:
    """The two exchange their roles."""
    if account.related is None:
        return None
    first, word, second = account.related
    return Account(account.things[::-1], (second, word, first))


_moved: Change = partial(moved, names=ATTRIBUTES)
_moved_other: Change = partial(moved, names=ATTRIBUTES, other_word=True)  # a word is new and one is gone, as in _other
_exchanged: Change = partial(exchanged, names=ATTRIBUTES)
_other: Change = partial(reworded, names=ATTRIBUTES)
CHANGES: dict[PairKind, dict[str, dict[str, tuple[float, Change]]]] = {
    "inference": {
        "entailment": {"same": (0.5, _same), "less": (0.5, _less)},
        "neutral": {
            "moved": (0.6, _moved),
            "moved_other": (0.25, _moved_other),
            "more": (0.15, _more),
        },
        "contradiction": {
            "relation": (0.15, _relation),
            "roles": (0.15, _roles),
            "exchanged": (0.4, _exchanged),
            "other": (0.3, _other),
        },
    },
    "paraphrase": {
        "different": {
            "relation": (0.4, _relation),
            "exchanged": (0.35, _exchanged),
            "moved": (0.25, _moved),
        },
        "same": {"same": (1.0, _same)},
    },
}
"""Kind of pairs -> label -> the changes that give it, each with its share of the tries."""
