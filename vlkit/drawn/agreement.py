"""Two texts, and for every word that states something whether the other text agrees, is silent, or denies it.

An answer to "does the second follow?" is one label for a whole pair, and a small T5 learns to compare slowly from it.
Here every statement of both texts has a label of its own, as every token has one in replaced-token detection (ELECTRA).
Which text a statement is of counts: what the second leaves out still follows, what it adds does not. On the way to a
verdict on the pair stand verdicts on its things.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from vlkit.drawn.accounts import (
    VERDICTS,
    Account,
    Key,
    Said,
    about,
    account_of,
    false,
    less,
    made_up,
    misplaced,
    more,
    moved,
    pair_of,
    retold,
    statements,
    verdict_on,
    written,
)
from vlkit.drawn.dice import Dice
from vlkit.drawn.graph import Scene
from vlkit.drawn.statements import fields

AGREED, LEFT_OUT, ADDED, DENIED = range(4)
"""The other text says the same; the second does not say what the first says; the first does not say what the second
says; the other text says otherwise."""
SHARES = (0.3, 0.5, 0.2)
"""How often an account is of one, two or three things: comparing begins with texts of one thing."""
BACKGROUND: Key = ("background",)
MADE_UP = 0.15
"""How often a kind has a made-up name: words that are equal agree whatever they mean."""

SORTS = {"verdict": 0.4, "changes": 0.4, "relation": 0.2}
"""How pairs are made, and how often. Relations are learned last, so some pairs say little else."""

Change = Callable[[Account, Account, Dice], Account | None]
CHANGES: dict[str, tuple[float, Change]] = {
    "less": (0.17, lambda second, first, dice: less(second, dice)),
    "more": (0.2, more),
    "moved": (0.13, lambda second, first, dice: moved(second, dice, other_word=dice.chance(0.3))),
    "false": (0.5, lambda second, first, dice: false(second, dice)),
}
"""Change of the second text, given the first -> its share."""


class Marked(NamedTuple):
    """A source of two texts, and what it says of them.

    Attributes:
        source: the texts.
        marks: where the words of an attribute, a relation or a background end in it, and one of the four labels.
        things: where the word of a kind ends, and the verdict on what the texts say of that thing.
        verdict: the verdict on the pair. Verdicts are numbers in :data:`vlkit.drawn.accounts.VERDICTS`.
    """

    source: str
    marks: list[tuple[int, int]]
    things: list[tuple[int, int]]
    verdict: int


def marked(scene: Scene, dice: Dice) -> Marked:
    """Two texts about a scene and the marks of both. Two fifths of the pairs have a verdict drawn evenly, in as many
    the second text has up to four changes, and the rest are about how two things stand.
    """
    sort = dice.weighted(tuple(SORTS), tuple(SORTS.values()))
    if sort == "relation" and (found := related_pair(scene, dice)):
        first, second = found
    elif sort == "verdict":
        first, second = pair_of(scene, dice.one_of(VERDICTS), dice)
    else:
        first = account_of(scene, dice, SHARES)
        second = retold(first, dice)
        for _ in range(dice.integer(5)):
            way = dice.weighted(tuple(CHANGES), [share for share, _ in CHANGES.values()])
            second = CHANGES[way][1](second, first, dice) or second
    names: dict[str, str] = {}
    for kind in dict.fromkeys(thing.kind for one in (first, second) for thing in one.things):
        if dice.chance(MADE_UP) and (name := made_up(dice)) not in names.values():
            names[kind] = name
    return marks_of(_renamed(first, names), _renamed(second, names), dice)


def related_pair(scene: Scene, dice: Dice) -> tuple[Account, Account] | None:
    """Two texts of how two things stand, with few other words; half of the second ones say otherwise. None if no two
    things stand clearly.
    """
    for _ in range(4):
        first = account_of(scene, dice, (0.0, 0.8, 0.2))
        if first.related is not None:
            things = tuple(thing if dice.chance(0.5) else Said(thing.kind) for thing in first.things)
            first = replace(first, things=things)
            second = retold(first, dice)
            return first, (misplaced(second, dice) if dice.chance(0.5) else None) or second
    return None


def marks_of(first: Account, second: Account, dice: Dice) -> Marked:
    """The marks of two texts, told and named at random."""
    source, marks, things = made_up(dice), [], []
    pair = (first, second)
    said = [statements(one) for one in pair]
    silent = (LEFT_OUT, ADDED)
    for one, mine, other, field, unsaid in zip(pair, said, said[::-1], fields(dice), silent, strict=True):
        text, ends = written(one.words(dice))
        source += f" {field} "
        for end, key in ends:
            if len(key) == 1 and key != BACKGROUND:
                verdict = verdict_on(*(about(key[0], each) for each in said))
                things.append((len(source) + end, VERDICTS.index(verdict)))
            else:
                marks.append((len(source) + end, label_of(key, mine, other, unsaid)))
        source += text
    return Marked(source, marks, things, VERDICTS.index(verdict_on(*said)))


def label_of(key: Key, mine: dict[Key, str], other: dict[Key, str], unsaid: int) -> int:
    """What the statements of the other text say of one of mine; ``unsaid`` if nothing."""
    if key not in other:
        return unsaid
    return AGREED if other[key] == mine[key] else DENIED


def _renamed(account: Account, names: dict[str, str]) -> Account:
    things = tuple(replace(thing, kind=names.get(thing.kind, thing.kind)) for thing in account.things)
    if account.related is None:
        return replace(account, things=things)
    first, word, second = account.related
    return replace(account, things=things, related=(names.get(first, first), word, names.get(second, second)))
