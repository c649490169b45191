"""Supervised tasks over texts of the pre-training world: a source and the text to write, labelled by construction.

A real T5 was pre-trained on a mixture of supervised tasks in text-to-text form beside span corruption (T5, section
3.5.3). These are the tasks of this world: how two texts relate and why, whether the second follows, whether both say
the same; correcting a text by another, asking for one fact of a text, writing a text from a list of facts, and the list
from a text. What a text says, and how a second one relates to it, is :mod:`vlkit.drawn.accounts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vlkit.drawn.accounts import (
    VALUES,
    VERDICTS,
    Account,
    Verdict,
    account_of,
    false,
    made_up,
    pair_of,
    retold,
    statements,
)
from vlkit.drawn.captions_pretrain import RELATIONS
from vlkit.drawn.dice import Dice
from vlkit.drawn.graph import Scene

FIELDS = (
    ("first:", "second:"),
    ("text:", "claim:"),
    ("one:", "two:"),
    ("known:", "said:"),
    ("given:", "then:"),
    ("a:", "b:"),
    ("left:", "right:"),
    ("before:", "after:"),
)
"""What stands before two texts; half of the names are made up, so that a reader learns where a text begins and not
these words."""


class Task(NamedTuple):
    """One example, and which task it is of."""

    name: str
    source: str
    target: str


# --- tasks ------------------------------------------------------------------------------------------------------------

Write = Callable[[Scene, Dice], tuple[str, str]]


def fields(dice: Dice) -> tuple[str, str]:
    """What stands before two texts, known or made up."""
    return dice.one_of(FIELDS) if dice.chance(0.5) else (f"{made_up(dice)}:", f"{made_up(dice)}:")


def joined(word: str, first: str, second: str, dice: Dice) -> str:
    """``compare first: … second: …``."""
    names = fields(dice)
    return f"{word} {names[0]} {first} {names[1]} {second}"


def _pair(scene: Scene, verdict: Verdict, word: str, dice: Dice) -> str:
    first, second = pair_of(scene, verdict, dice)
    return joined(word, first.text(dice), second.text(dice), dice)


def compare(scene: Scene, dice: Dice) -> tuple[str, str]:
    """Which verdict, as a word or as its number; also where the task's word is made up, so a reader of an unknown word
    compares.
    """
    verdict = dice.weighted(VERDICTS, (0.25, 0.15, 0.15, 0.15, 0.3))
    word, number = "compare" if dice.chance(0.4) else made_up(dice), dice.chance(0.35)
    source = _pair(scene, verdict, f"{word} number" if number else word, dice)
    return source, str(VERDICTS.index(verdict)) if number else verdict


def why(scene: Scene, dice: Dice) -> tuple[str, str]:
    """Which verdict, and the statements that decide it: ``false car colour``, ``less car size, cat``."""
    verdict = dice.weighted(VERDICTS, (0.1, 0.2, 0.2, 0.15, 0.35))
    first, second = pair_of(scene, verdict, dice)
    source = joined("why", first.text(dice), second.text(dice), dice)
    known, said = statements(first), statements(second)
    if verdict == "false":
        keys = [key for key in said if known.get(key, said[key]) != said[key]]
    elif verdict == "less":
        keys = [key for key in known if key not in said]
    else:
        keys = [key for key in said if key not in known]
    # A relation is stated from both sides and named once.
    named = dict.fromkeys("relation" if key[0] == "relation" else " ".join(key) for key in keys)
    return source, f"{verdict} {', '.join(named)}".strip()


def follows(scene: Scene, dice: Dice) -> tuple[str, str]:
    """Whether the second text follows: yes, no, or maybe."""
    verdict = dice.weighted(VERDICTS, (0.14, 0.16, 0.1, 0.26, 0.34))
    answer = {"equal": "yes", "less": "yes", "more": "maybe", "open": "maybe", "false": "no"}[verdict]
    return _pair(scene, verdict, "follows", dice), answer


def same(scene: Scene, dice: Dice) -> tuple[str, str]:
    """Whether both texts say the same."""
    verdict = dice.weighted(VERDICTS, (0.5, 0.06, 0.06, 0.06, 0.32))
    return _pair(scene, verdict, "same", dice), "yes" if verdict == "equal" else "no"


def correct(scene: Scene, dice: Dice) -> tuple[str, str]:
    """The second text, put right by the first."""
    while True:
        first = account_of(scene, dice)
        right = retold(first, dice)
        wrong = false(right, dice)
        if wrong is None:
            continue
        seed = dice.integer(2**31)  # both are told in the same words
        told, said = (one.text(Dice(np.random.default_rng(seed))) for one in (wrong, right))
        return joined("correct", first.text(dice), told, dice), said


def ask(scene: Scene, dice: Dice) -> tuple[str, str]:
    """One fact of a text, or ``unknown``."""
    account = account_of(scene, dice)
    text = account.text(dice)
    if account.related and dice.chance(0.4):
        first, word, second = account.related if dice.chance(0.5) else retold(account, dice).related or account.related
        if dice.chance(0.5):
            return f"ask which {RELATIONS[word]} {second}: {text}", first
        return f"ask how {first} {second}: {text}", RELATIONS[word]
    thing = account.things[dice.integer(len(account.things))]
    said = [name for name in VALUES if getattr(thing, name)]
    name = dice.one_of(said) if said and dice.chance(0.8) else dice.one_of(tuple(VALUES))
    return f"ask {name} {thing.kind}: {text}", getattr(thing, name) or "unknown"


def tell(scene: Scene, dice: Dice) -> tuple[str, str]:
    """A text from a list of facts."""
    account = account_of(scene, dice)
    return f"tell {_listed(account, dice)}", account.text(dice)


def facts(scene: Scene, dice: Dice) -> tuple[str, str]:
    """The list of facts of a text, in the order of the text."""
    account = account_of(scene, dice)
    if account.related:  # the text begins with the two that are related
        kinds = [account.related[0], account.related[2]]
        kinds += [thing.kind for thing in account.things if thing.kind not in kinds]
        account = replace(account, things=tuple(one for kind in kinds if (one := account.of(kind))))
    return f"facts {account.text(dice)}", _listed(account, None)


def _listed(account: Account, dice: Dice | None) -> str:
    """``car red small, cat white, car above cat``; shuffled if there is a generator."""
    parts = [
        " ".join([thing.kind, *(str(getattr(thing, name)) for name in VALUES if getattr(thing, name))])
        for thing in account.things
    ]
    if account.related:
        parts.append(" ".join(account.related))
    if account.ground:
        parts.append(f"background {account.ground}")
    order = range(len(parts)) if dice is None else dice.shuffled(range(len(parts)))
    return ", ".join(parts[i] for i in order)


TASKS: dict[str, tuple[float, Write]] = {
    "compare": (0.3, compare),
    "why": (0.1, why),
    "follows": (0.24, follows),
    "same": (0.18, same),
    "correct": (0.06, correct),
    "ask": (0.06, ask),
    "tell": (0.04, tell),
    "facts": (0.02, facts),
}
"""Name -> its share, and what makes an example of a scene."""


def task_of(scene: Scene, dice: Dice, name: str | None = None) -> Task:
    """An example of a task, of one at random by default."""
    if name is None:
        name = dice.weighted(tuple(TASKS), [share for share, _ in TASKS.values()])
    return Task(name, *TASKS[name][1](scene, dice))
