"""Accounts of scenes of the pre-training world: what a text says, and how the account of a second text relates to it.

Two texts are compared by what they say alone. Things are known by their kind, and a scene may hold more than a text
says: what is not said is open, another colour, size, pattern, place or relation of a thing that was described is false.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from vlkit.drawn.backgrounds import FLAT_COLOURS
from vlkit.drawn.captions_pretrain import OPENINGS, PLACES, RELATIONS
from vlkit.drawn.dice import Dice
from vlkit.drawn.graph import SIZES, Scene, place, relation
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.scenes import PATTERNS
from vlkit.drawn.words import COLOURS, FAMILIAR, with_article

Verdict = Literal["equal", "less", "more", "open", "false"]
VERDICTS: tuple[Verdict, ...] = ("equal", "less", "more", "open", "false")
"""What the second text says, measured by the first: the same; a part of it; all of it and more; something else that may
be; something that is not so."""
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "pattern": tuple(pattern for pattern in PATTERNS if pattern != "plain"),
    "place": tuple(PLACES),
}
"""Attribute -> what it may be said to be."""
SAID = {"colour": 0.85, "size": 0.35, "pattern": 0.7, "place": 0.25}
"""How often each is said of a thing."""
SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "wen", "dor", "pim", "gal", "sto", "fe", "zu")
Key = tuple[str, ...]
"""What a statement is about: (kind), (kind, attribute), ('relation', kind, kind) or ('background')."""
Word = tuple[str, Key | None]
"""A word or a few of a text, and the statement that they make."""


def made_up(dice: Dice) -> str:
    """A name of one to four syllables."""
    return "".join(dice.one_of(SYLLABLES) for _ in range(1 + dice.integer(4)))


@dataclass(frozen=True)
class Said:
    """What a text says of a thing; None = nothing."""

    kind: str
    colour: str | None = None
    size: str | None = None
    pattern: str | None = None
    place: str | None = None

    def words(self, dice: Dice) -> list[Word]:
        """``a small red striped car at the top``."""
        kind = dice.one_of(FAMILIAR[self.kind]) if self.kind in FAMILIAR and dice.chance(0.06) else self.kind
        found: list[Word] = [
            (word, (self.kind, name)) for name in ("size", "colour", "pattern") if (word := getattr(self, name))
        ]
        found.append((kind, (self.kind,)))
        found.insert(0, (with_article(found[0][0]).split()[0], None))
        return [*found, (PLACES[self.place], (self.kind, "place"))] if self.place else found


@dataclass(frozen=True)
class Account:
    """What a text says: of things of different kinds, of two of them how they stand, and of the background.

    Attributes:
        things: in the order of the text.
        related: (kind, relation, kind); the two have no places, which would say it again.
        ground: colour of the background.
    """

    things: tuple[Said, ...]
    related: tuple[str, str, str] | None = None
    ground: str | None = None

    def text(self, dice: Dice) -> str:
        """In the sentences of the pre-training captions."""
        return written(self.words(dice))[0]

    def words(self, dice: Dice) -> list[Word]:
        """The text, word by word."""
        phrases = {thing.kind: thing.words(dice) for thing in self.things}
        found: list[Word] = []
        if self.related:
            first, word, second = self.related
            found = [*phrases.pop(first), (RELATIONS[word], ("relation", first, second)), *phrases.pop(second)]
        listed = len(self.things) > 2 and not self.related
        for number, phrase in enumerate(phrases.values(), start=1):
            if found:
                found.append((",", None) if listed and number < len(phrases) else ("and", None))
            found += phrase
        if self.ground:
            article, *colour = with_article(self.ground).split()
            found += [("on", None), (article, None), (" ".join(colour), ("background",)), ("background", None)]
        opening = dice.one_of(OPENINGS).strip()
        return [(opening, None), *found] if opening else found

    def of(self, kind: str) -> Said | None:
        """What is said of the thing of a kind."""
        return next((thing for thing in self.things if thing.kind == kind), None)

    def with_value(self, kind: str, name: str, value: str | None) -> Account:
        """With another value of an attribute of the thing of this kind; None = it is not said."""
        return replace(
            self, things=tuple(replace(one, **{name: value}) if one.kind == kind else one for one in self.things)
        )


def account_of(scene: Scene, dice: Dice, shares: tuple[float, float, float] = (0.15, 0.6, 0.25)) -> Account:
    """A random true account of a scene: of one thing, two or three (at most, in ``shares`` of the cases), of one kind
    each.
    """
    most = dice.weighted((1, 2, 3), shares)
    numbers: dict[str, int] = {}
    for i in dice.shuffled(range(len(scene.things))):
        if len(numbers) < most:
            numbers.setdefault(scene.things[i].kind, i)
    pairs = [(a, b) for a in numbers for b in numbers if a != b and relation(scene, numbers[a], numbers[b]) in INVERSE]
    related = None
    if pairs and dice.chance(0.65):
        first, second = pairs[dice.integer(len(pairs))]
        related = (first, str(relation(scene, numbers[first], numbers[second])), second)
    things = []
    for kind, number in numbers.items():
        thing = scene.things[number]
        true = {"colour": thing.colour, "size": thing.size, "pattern": thing.pattern, "place": place(thing)}
        if thing.pattern == "plain":
            del true["pattern"]
        if related and kind in (related[0], related[2]):
            del true["place"]
        things.append(Said(kind, **{name: value for name, value in true.items() if dice.random() < SAID[name]}))
    ground = scene.background.colour if scene.background.colour and dice.chance(0.08) else None
    return Account(tuple(things), related, ground)


def written(words: Iterable[Word]) -> tuple[str, list[tuple[int, Key]]]:
    """A text, and for each statement of it where its words end and its key; places count characters."""
    text, ends = "", []
    for word, key in words:
        text += word if not text or word == "," else f" {word}"
        if key is not None:
            ends.append((len(text), key))
    return text, ends


def statements(account: Account) -> dict[Key, str]:
    """What an account says, each statement alone: (kind), (kind, attribute) or (relation, kind, kind) -> value; a
    relation from both sides.
    """
    found: dict[Key, str] = {}
    for thing in account.things:
        found[thing.kind,] = "there"
        found |= {(thing.kind, name): value for name in VALUES if (value := getattr(thing, name))}
    if account.related:
        first, word, second = account.related
        found |= {("relation", first, second): word, ("relation", second, first): INVERSE[word]}
    return found | ({("background",): account.ground} if account.ground else {})


def verdict_of(first: Account, second: Account) -> Verdict:
    """What the second says, measured by the first."""
    return verdict_on(statements(first), statements(second))


def verdict_on(known: dict[Key, str], said: dict[Key, str]) -> Verdict:
    """What the statements of a second text say, measured by those of a first."""
    if any(known.get(key, value) != value for key, value in said.items()):
        return "false"
    new, left = said.keys() - known.keys(), known.keys() - said.keys()
    return "open" if new and left else "more" if new else "less" if left else "equal"


def about(kind: str, said: dict[Key, str]) -> dict[Key, str]:
    """The statements on the thing of a kind, and on how it stands to others."""
    return {key: value for key, value in said.items() if key[0] == kind or key[:2] == ("relation", kind)}


# --- one account -> another one -------------------------------------------------------------------------------------


def retold(account: Account, dice: Dice) -> Account:
    """The same, told in another order and from either side of a relation."""
    things = tuple(dice.shuffled(account.things))
    related = account.related
    if related and dice.chance(0.5):
        related = turned(related)
    return Account(things, related, account.ground)


def turned(related: tuple[str, str, str]) -> tuple[str, str, str]:
    """A relation said from the other side."""
    return related[2], INVERSE[related[1]], related[0]


def less(account: Account, dice: Dice) -> Account | None:
    """Some of it; None if nothing can be left out."""
    for _ in range(8):
        drop = 0.3 * dice.random() + 0.1
        things = [
            replace(thing, **{name: None for name in VALUES if getattr(thing, name) and dice.random() < drop})
            for thing in account.things
        ]
        if len(things) > 1 and dice.chance(0.25):
            del things[dice.integer(len(things))]
        kinds = {thing.kind for thing in things}
        related = account.related
        if related and (not {related[0], related[2]} <= kinds or dice.random() < drop):
            related = None
        ground = account.ground if dice.random() >= drop else None
        found = Account(tuple(things), related, ground)
        if found != account:
            return found
    return None


def more(account: Account, known: Account, dice: Dice) -> Account | None:
    """Something is added that ``known`` does not say; None if the try found no room."""
    way = dice.weighted((0, 1, 2, 3), (0.55, 0.2, 0.2, 0.05))
    if way == 0:
        thing = account.things[dice.integer(len(account.things))]
        # What is unsaid here may be said in the other text, and then it is not open.
        also = known.of(thing.kind) or thing
        standing = {kind for one in (account.related, known.related) if one for kind in (one[0], one[2])}
        free = [
            name
            for name in VALUES
            if getattr(thing, name) is None
            and getattr(also, name) is None
            and not (name == "place" and thing.kind in standing)
        ]
        if not free:
            return None
        name = dice.one_of(free)
        return account.with_value(thing.kind, name, dice.one_of(VALUES[name]))
    if way == 1:
        told = {thing.kind for thing in (*account.things, *known.things)}
        kind = dice.one_of([kind for kind in KINDS if kind not in told])
        thing = Said(kind, dice.one_of(VALUES["colour"]) if dice.chance(0.85) else None)
        return replace(account, things=(*account.things, thing)) if len(account.things) < 3 else None
    if way == 2:
        kinds = [thing.kind for thing in account.things]
        if len(kinds) < 2 or account.related or known.related:
            return None
        if any(one is not None and one.place for kind in kinds for one in (account.of(kind), known.of(kind))):
            return None  # places may decide how things stand
        first, second = dice.shuffled(kinds)[:2]
        return replace(account, related=(first, dice.one_of(tuple(INVERSE)), second))
    if account.ground or known.ground:
        return None
    return replace(account, ground=dice.one_of([colour for colour in FLAT_COLOURS if colour]))


def false(account: Account, dice: Dice) -> Account | None:
    """One thing of it is not so; exchanges keep the words. None if the try found nothing to change."""
    way = dice.weighted((0, 1, 2, 3), (0.45, 0.3, 0.2, 0.05))
    if way == 0:
        return misplaced(account, dice)
    if way == 1:
        return exchanged(account, dice)
    if way == 2:
        return reworded(account, dice)
    if way == 3 and account.ground:
        return replace(account, ground=dice.one_of([c for c in FLAT_COLOURS if c and c != account.ground]))
    return None


def misplaced(account: Account, dice: Dice) -> Account | None:
    """Two things stand the other way round: they exchange their roles, or the relation is the opposite one. None if
    nothing is said of how they stand.
    """
    if account.related is None:
        return None
    first, word, second = account.related
    return replace(account, related=(second, word, first) if dice.chance(0.5) else (first, INVERSE[word], second))


def exchanged(account: Account, dice: Dice, names: Iterable[str] = tuple(VALUES)) -> Account | None:
    """What is said of two things is exchanged, in one of these attributes; None if no two differ in one."""
    ways = [
        (name, a, b)
        for name in names
        for a in account.things
        for b in account.things
        if getattr(a, name) and getattr(b, name) and getattr(a, name) != getattr(b, name)
    ]
    if not ways:
        return None
    name, a, b = dice.one_of(ways)
    return account.with_value(a.kind, name, getattr(b, name)).with_value(b.kind, name, getattr(a, name))


def reworded(account: Account, dice: Dice, names: Iterable[str] = tuple(VALUES)) -> Account | None:
    """One of these attributes has another value where it is said; None if none is."""
    ways = [(thing, name) for thing in account.things for name in names if getattr(thing, name)]
    if not ways:
        return None
    thing, name = dice.one_of(ways)
    return account.with_value(thing.kind, name, another(name, getattr(thing, name), dice))


def moved(
    account: Account, dice: Dice, names: Iterable[str] = ("colour", "size", "pattern"), other_word: bool = False
) -> Account | None:
    """What is said of one thing alone is said of another thing alone, in one of these attributes; the words stay.

    ``other_word`` changes the value too. None if no thing says what another one leaves unsaid.
    """
    ways = [
        (name, one, other)
        for name in names
        for one in account.things
        for other in account.things
        if getattr(one, name) and not getattr(other, name)
    ]
    if not ways:
        return None
    name, one, other = dice.one_of(ways)
    value = getattr(one, name)
    value = another(name, value, dice) if other_word else value
    return account.with_value(one.kind, name, None).with_value(other.kind, name, value)


def another(name: str, value: str, dice: Dice) -> str:
    """Another value of an attribute."""
    return dice.one_of([other for other in VALUES[name] if other != value])


def pair_of(scene: Scene, verdict: Verdict, dice: Dice) -> tuple[Account, Account]:
    """Two accounts of which the second relates to the first as asked."""
    while True:
        first = account_of(scene, dice)
        second: Account | None = first
        if verdict == "open" and dice.chance(0.4) and (found := moved(first, dice, other_word=dice.chance(0.4))):
            return first, retold(found, dice)
        if verdict == "less" or verdict == "open" or (verdict == "false" and dice.chance(0.4)):
            second = less(first, dice)
        if verdict in ("more", "open") and second is not None:
            second = more(second, first, dice)
        if verdict == "false" and second is not None:
            second = false(second, dice)
        if second is not None:
            return first, retold(second, dice)
