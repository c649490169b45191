"""Pairs of sentences about scenes: natural-language inference and paraphrase, decided by the scene graph.

The pairs are built so that the words alone do not decide: a hypothesis with the roles, the relation or the colours of
its premise exchanged has the same words, and so has one that turns the sentence round and stays true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlkit.data.boxes import Record
from vlkit.data.sources.prepare import Source
from vlkit.data.text_task import TextTask
from vlkit.drawn.captions_pretrain import RELATIONS
from vlkit.drawn.graph import SIZES, Scene, Thing, relation
from vlkit.drawn.scenes import choose
from vlkit.drawn.words import with_article
from vlkit.drawn.world import COUNTS, Style, WorldSize, generator, sample_scenes

STREAM = 7
"""Stream number of these sentences among an image's generators (:func:`vlkit.drawn.world.generator`)."""
PairKind = Literal["inference", "paraphrase"]
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "we see ")
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


@dataclass(frozen=True)
class Said:
    """What a sentence says of a thing; None = nothing."""

    kind: str
    colour: str | None
    size: str | None

    def phrase(self) -> str:
        return with_article(" ".join(word for word in (self.size, self.colour, self.kind) if word))


@dataclass(frozen=True)
class Sentence:
    """Two things and, if it is stated, the relation of the first to the second."""

    first: Said
    second: Said
    relation: str | None

    def text(self, rng: np.random.Generator) -> str:
        words = RELATIONS[self.relation] if self.relation else "and"
        return choose(rng, OPENINGS) + f"{self.first.phrase()} {words} {self.second.phrase()}"

    def turned(self) -> Sentence:
        """The same, said from the other thing."""
        return Sentence(self.second, self.first, self.relation and INVERSE[self.relation])


Change = Callable[[Sentence, "Facts", np.random.Generator], Sentence | None]


@dataclass(frozen=True)
class Facts:
    """What is true of the two things, whether or not it is said, and a third thing of the scene, if there is one."""

    relation: str
    sizes: tuple[str, str]
    other: Said | None


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
    found = _two_things(scene, rng)
    if found is None:
        return []
    i, j, facts = found
    labels = TASKS[kind].labels
    records = []
    for label in labels:
        # Each label has a premise of its own, so its form says nothing about the label.
        premise = _premise(scene.things[i], scene.things[j], facts, rng, kind)
        changes = list(CHANGES[kind][label].items())
        for number in rng.permutation(len(changes)):
            name, change = changes[int(number)]
            changed = change(premise, facts, rng)
            if changed is not None:
                if rng.random() < 0.5 and name not in ("roles", "relation"):
                    changed = changed.turned()
                records.append({"text": premise.text(rng), "text2": changed.text(rng), "label": label, "change": name})
                break
    return records


def _two_things(scene: Scene, rng: np.random.Generator) -> tuple[int, int, Facts] | None:
    things = scene.things
    for i in rng.permutation(len(things)):
        for j in rng.permutation(len(things)):
            if things[i].kind == things[j].kind or things[i].colour == things[j].colour:
                continue
            found = relation(scene, int(i), int(j))
            if found in INVERSE:
                kinds = things[i].kind, things[j].kind
                rest = [t for k, t in enumerate(things) if k not in (i, j) and t.kind not in kinds]
                other = Said(rest[0].kind, rest[0].colour, None) if rest else None
                return int(i), int(j), Facts(found, (things[i].size, things[j].size), other)
    return None


def _premise(a: Thing, b: Thing, facts: Facts, rng: np.random.Generator, kind: PairKind) -> Sentence:
    first, second = (Said(t.kind, t.colour, t.size if rng.random() < 0.4 else None) for t in (a, b))
    stated = kind == "paraphrase" or rng.random() < 0.75
    return Sentence(first, second, facts.relation if stated else None)


# --- changes: a sentence -> another one of a known label, or None if it does not apply --------------------------------


def _same(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    return sentence.turned() if sentence.relation else Sentence(sentence.second, sentence.first, None)


def _less(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    """Something said is left out."""
    first, second = sentence.first, sentence.second
    which = [
        Sentence(replace(first, size=None), second, sentence.relation) if first.size else None,
        Sentence(first, replace(second, size=None), sentence.relation) if second.size else None,
        Sentence(replace(first, colour=None), second, sentence.relation),
        Sentence(first, replace(second, colour=None), sentence.relation),
        Sentence(first, second, None) if sentence.relation else None,
    ]
    return choose(rng, [one for one in which if one is not None])


def _more(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    """Something is said that the premise leaves open, true of the scene or not."""
    first, second = sentence.first, sentence.second
    sizes = list(SIZES)
    which = [
        Sentence(replace(first, size=choose(rng, sizes)), second, sentence.relation) if not first.size else None,
        Sentence(first, replace(second, size=choose(rng, sizes)), sentence.relation) if not second.size else None,
        None if sentence.relation else Sentence(first, second, choose(rng, list(INVERSE))),
    ]
    which = [one for one in which if one is not None]
    return choose(rng, which) if which else None


def _another(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    """A third thing of the scene stands for one of the two."""
    return facts.other and replace(sentence, second=facts.other)


def _roles(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    return Sentence(sentence.second, sentence.first, sentence.relation) if sentence.relation else None


def _relation(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    return replace(sentence, relation=INVERSE[sentence.relation]) if sentence.relation else None


def _colours(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    first, second = sentence.first, sentence.second
    return Sentence(replace(first, colour=second.colour), replace(second, colour=first.colour), sentence.relation)


def _size(sentence: Sentence, facts: Facts, rng: np.random.Generator) -> Sentence | None:
    """A stated size is another one."""
    first, second = sentence.first, sentence.second
    if first.size:
        return replace(sentence, first=replace(first, size=choose(rng, [s for s in SIZES if s != first.size])))
    if second.size:
        return replace(sentence, second=replace(second, size=choose(rng, [s for s in SIZES if s != second.size])))
    return None


_FALSE: dict[str, Change] = {"roles": _roles, "relation": _relation, "colours": _colours, "size": _size}
CHANGES: dict[PairKind, dict[str, dict[str, Change]]] = {
    "inference": {
        "entailment": {"same": _same, "less": _less},
        "neutral": {"more": _more, "another": _another},
        "contradiction": _FALSE,
    },
    "paraphrase": {"different": _FALSE, "same": {"same": _same}},
}
"""Kind of pairs -> label -> the changes that give it."""
