"""Supervised tasks over texts of the pre-training world: a source and the text to write, labelled by construction.

A real T5 was pre-trained on a mixture of supervised tasks in text-to-text form beside span corruption (T5, section
3.5.3). These are the tasks of this world: how two texts relate and why, whether the second follows, whether both say
the same; correcting a text by another, asking for one fact of a text, writing a text from a list of facts, and the list
from a text.

Two texts are compared by what they say alone. Things are known by their kind, and a scene may hold more than a text
says: what is not said is open, another colour, size, pattern, place or relation of a thing that was described is false.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

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


@dataclass(frozen=True)
class Said:
    """What a text says of a thing; None = nothing."""

    kind: str
    colour: str | None = None
    size: str | None = None
    pattern: str | None = None
    place: str | None = None

    def phrase(self, dice: Dice) -> str:
        """``a small red striped car at the top``."""
        kind = dice.one_of(FAMILIAR[self.kind]) if self.kind in FAMILIAR and dice.chance(0.06) else self.kind
        words = with_article(" ".join(word for word in (self.size, self.colour, self.pattern, kind) if word))
        return f"{words} {PLACES[self.place]}" if self.place else words


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
        phrases = {thing.kind: thing.phrase(dice) for thing in self.things}
        if self.related:
            first, word, second = self.related
            head = f"{phrases.pop(first)} {RELATIONS[word]} {phrases.pop(second)}"
            parts = [head, *phrases.values()]
            text = " and ".join(parts)
        else:
            parts = list(phrases.values())
            text = " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + " and " + parts[-1]
        if self.ground:
            text += f" on {with_article(self.ground)} background"
        return dice.one_of(OPENINGS) + text

    def of(self, kind: str) -> Said | None:
        """What is said of the thing of a kind."""
        return next((thing for thing in self.things if thing.kind == kind), None)

    def with_thing(self, thing: Said) -> Account:
        """With another statement about the thing of this kind."""
        return replace(self, things=tuple(thing if one.kind == thing.kind else one for one in self.things))


class Task(NamedTuple):
    """One example, and which task it is of."""

    name: str
    source: str
    target: str


def account_of(scene: Scene, dice: Dice) -> Account:
    """A random true account of one to three things of a scene, of one kind each."""
    most = dice.weighted((1, 2, 3), (0.15, 0.6, 0.25))
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


def statements(account: Account) -> dict[tuple[str, ...], str]:
    """What an account says, each statement alone: (kind), (kind, attribute) or (relation, kind, kind) -> value; a
    relation from both sides.
    """
    found: dict[tuple[str, ...], str] = {}
    for thing in account.things:
        found[thing.kind,] = "there"
        found |= {(thing.kind, name): value for name in VALUES if (value := getattr(thing, name))}
    if account.related:
        first, word, second = account.related
        found |= {("relation", first, second): word, ("relation", second, first): INVERSE[word]}
    return found | ({("background",): account.ground} if account.ground else {})


# --- one account -> another one -------------------------------------------------------------------------------------


def retold(account: Account, dice: Dice) -> Account:
    """The same, told in another order and from either side of a relation."""
    things = tuple(dice.shuffled(account.things))
    related = account.related
    if related and dice.chance(0.5):
        related = (related[2], INVERSE[related[1]], related[0])
    return Account(things, related, account.ground)


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
        return account.with_thing(replace(thing, **{name: dice.one_of(VALUES[name])}))
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
    way = dice.weighted((0, 1, 2, 3), (0.35, 0.35, 0.25, 0.05))
    if way == 0 and account.related:
        first, word, second = account.related
        related = (second, word, first) if dice.chance(0.5) else (first, INVERSE[word], second)
        return replace(account, related=related)
    if way == 1:  # what is said of two things is exchanged
        options = [
            (name, a, b)
            for name in VALUES
            for a in account.things
            for b in account.things
            if getattr(a, name) and getattr(b, name) and getattr(a, name) != getattr(b, name)
        ]
        if not options:
            return None
        name, a, b = options[dice.integer(len(options))]
        changed = account.with_thing(replace(a, **{name: getattr(b, name)}))
        return changed.with_thing(replace(b, **{name: getattr(a, name)}))
    if way == 2:
        said = [(name, thing) for thing in account.things for name in VALUES if getattr(thing, name)]
        if not said:
            return None
        name, thing = said[dice.integer(len(said))]
        other = dice.one_of([value for value in VALUES[name] if value != getattr(thing, name)])
        return account.with_thing(replace(thing, **{name: other}))
    if way == 3 and account.ground:
        return replace(account, ground=dice.one_of([c for c in FLAT_COLOURS if c and c != account.ground]))
    return None


def pair_of(scene: Scene, verdict: Verdict, dice: Dice) -> tuple[Account, Account]:
    """Two accounts of which the second relates to the first as asked."""
    while True:
        first = account_of(scene, dice)
        second: Account | None = first
        if verdict == "less" or verdict == "open" or (verdict == "false" and dice.chance(0.4)):
            second = less(first, dice)
        if verdict in ("more", "open") and second is not None:
            second = more(second, first, dice)
        if verdict == "false" and second is not None:
            second = false(second, dice)
        if second is not None:
            return first, retold(second, dice)


# --- tasks ------------------------------------------------------------------------------------------------------------

Write = Callable[[Scene, Dice], tuple[str, str]]


def _made_up(dice: Dice) -> str:
    return "".join(dice.one_of(SYLLABLES) for _ in range(1 + dice.integer(4)))


def _joined(word: str, first: str, second: str, dice: Dice) -> str:
    """``compare first: … second: …``, the fields' names known or made up."""
    names = dice.one_of(FIELDS) if dice.chance(0.5) else (f"{_made_up(dice)}:", f"{_made_up(dice)}:")
    return f"{word} {names[0]} {first} {names[1]} {second}"


def _pair(scene: Scene, verdict: Verdict, word: str, dice: Dice) -> str:
    first, second = pair_of(scene, verdict, dice)
    return _joined(word, first.text(dice), second.text(dice), dice)


def compare(scene: Scene, dice: Dice) -> tuple[str, str]:
    """Which verdict, as a word or as its number; also where the task's word is made up, so a reader of an unknown word
    compares.
    """
    verdict = dice.weighted(VERDICTS, (0.25, 0.15, 0.15, 0.15, 0.3))
    word, number = "compare" if dice.chance(0.4) else _made_up(dice), dice.chance(0.35)
    source = _pair(scene, verdict, f"{word} number" if number else word, dice)
    return source, str(VERDICTS.index(verdict)) if number else verdict


def why(scene: Scene, dice: Dice) -> tuple[str, str]:
    """Which verdict, and the statements that decide it: ``false car colour``, ``less car size, cat``."""
    verdict = dice.weighted(VERDICTS, (0.1, 0.2, 0.2, 0.15, 0.35))
    first, second = pair_of(scene, verdict, dice)
    source = _joined("why", first.text(dice), second.text(dice), dice)
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
    verdict = dice.weighted(VERDICTS, (0.14, 0.2, 0.12, 0.2, 0.34))
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
        return _joined("correct", first.text(dice), told, dice), said


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
    "compare": (0.26, compare),
    "why": (0.14, why),
    "follows": (0.18, follows),
    "same": (0.12, same),
    "correct": (0.1, correct),
    "ask": (0.1, ask),
    "tell": (0.06, tell),
    "facts": (0.04, facts),
}
"""Name -> its share, and what makes an example of a scene."""


def task_of(scene: Scene, dice: Dice, name: str | None = None) -> Task:
    """An example of a task, of one at random by default."""
    if name is None:
        name = dice.weighted(tuple(TASKS), [share for share, _ in TASKS.values()])
    return Task(name, *TASKS[name][1](scene, dice))
