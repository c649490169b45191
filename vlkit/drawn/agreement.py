"""Two texts, and for every word that states something whether the other text agrees, leaves it open, or denies it.

An answer to "does the second follow?" is one label for a whole pair, and a small T5 learns to compare slowly from it.
Here every statement of both texts has a label of its own, as every token has one in replaced-token detection (ELECTRA).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from vlkit.drawn.accounts import (
    Account,
    Key,
    account_of,
    false,
    less,
    made_up,
    more,
    moved,
    retold,
    statements,
    written,
)
from vlkit.drawn.dice import Dice
from vlkit.drawn.graph import Scene
from vlkit.drawn.statements import fields

AGREED, OPEN, DENIED = range(3)
"""The other text says the same, does not say, or says otherwise."""
SHARES = (0.3, 0.5, 0.2)
"""How often an account is of one, two or three things: comparing begins with texts of one thing."""
MADE_UP = 0.15
"""How often a kind has a made-up name: words that are equal agree whatever they mean."""

Change = Callable[[Account, Account, Dice], Account | None]
CHANGES: dict[str, tuple[float, Change]] = {
    "less": (0.17, lambda second, first, dice: less(second, dice)),
    "more": (0.2, more),
    "moved": (0.13, lambda second, first, dice: moved(second, dice, other_word=dice.chance(0.3))),
    "false": (0.5, lambda second, first, dice: false(second, dice)),
}
"""Change of the second text, given the first -> its share."""


class Marked(NamedTuple):
    """A source of two texts, and its marks: where the words of a statement end in it, and one of the three labels."""

    source: str
    marks: list[tuple[int, int]]


def marked(scene: Scene, dice: Dice) -> Marked:
    """Two texts about a scene, the second with up to four changes, and the marks of both."""
    first = account_of(scene, dice, SHARES)
    second = retold(first, dice)
    for _ in range(dice.integer(5)):
        way = dice.weighted(tuple(CHANGES), [share for share, _ in CHANGES.values()])
        second = CHANGES[way][1](second, first, dice) or second
    names: dict[str, str] = {}
    for kind in dict.fromkeys(thing.kind for one in (first, second) for thing in one.things):
        if dice.chance(MADE_UP) and (name := made_up(dice)) not in names.values():
            names[kind] = name
    pair = [_renamed(one, names) for one in (first, second)]
    source, marks = made_up(dice), []
    said = [statements(one) for one in pair]
    for one, mine, other, field in zip(pair, said, said[::-1], fields(dice), strict=True):
        text, ends = written(one.words(dice))
        source += f" {field} "
        marks += [(len(source) + end, label_of(key, mine, other)) for end, key in ends]
        source += text
    return Marked(source, marks)


def label_of(key: Key, mine: dict[Key, str], other: dict[Key, str]) -> int:
    """What the statements of the other text say of one of mine."""
    if key not in other:
        return OPEN
    return AGREED if other[key] == mine[key] else DENIED


def _renamed(account: Account, names: dict[str, str]) -> Account:
    things = tuple(replace(thing, kind=names.get(thing.kind, thing.kind)) for thing in account.things)
    if account.related is None:
        return replace(account, things=things)
    first, word, second = account.related
    return replace(account, things=things, related=(names.get(first, first), word, names.get(second, second)))
