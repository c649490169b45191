"""Referring expressions of the demo world: short phrases, each of which describes exactly one thing of its image."""

from __future__ import annotations

import numpy as np

from vlkit.drawn.graph import Scene
from vlkit.drawn.refer import Phrase, described, extreme, landmarks, placed, related
from vlkit.drawn.scenes import choose

SKILLS = {"kind": 0.12, "attribute": 0.3, "place": 0.25, "order": 0.25, "relation": 0.3, "size": 0.15}
"""Skill that a reader needs to find the thing, and how often it is tested where possible."""
BASES = 4
"""Number of phrases per target to which places and relations are added."""

BARE = 0.35
"""How often an expression may be a place alone ("leftmost thing")."""


def candidates(scene: Scene, i: int, rng: np.random.Generator) -> dict[str, list[Phrase]]:
    """Expressions that name thing ``i`` and no other, by skill; a skill is left out if the scene does not allow it.

    Places, order and relations are used only if the thing is ambiguous without them.
    """
    found: dict[str, list[Phrase]] = {skill: [] for skill in SKILLS}
    options = described(scene, i, rng)
    for phrase in options:
        if phrase.names(i):
            found["kind" if len(phrase.head.split()) == 1 or phrase is options[0] else "attribute"].append(phrase)
    unclear = [phrase for phrase in options if not phrase.names(i) and len(phrase.words.split()) <= 3]
    if rng.random() < BARE:
        unclear.append(Phrase("thing", (True,) * len(scene.things), "thing"))
    known = landmarks(scene, i, rng)
    for number in rng.permutation(len(unclear))[:BASES]:
        base = unclear[int(number)]
        for phrase in placed(scene, i, base, rng):
            found["order" if " from the " in phrase.words else "place"].append(phrase)
        found["relation"] += related(scene, i, base, known, rng)
        found["size"] += extreme(scene, i, base, rng)
    unique = {skill: [phrase for phrase in phrases if phrase.names(i)] for skill, phrases in found.items()}
    return {skill: phrases for skill, phrases in unique.items() if phrases}


def expressions(scene: Scene, i: int, rng: np.random.Generator, count: int) -> list[Phrase]:
    """At most ``count`` different expressions for thing ``i``, of different skills where possible."""
    options = candidates(scene, i, rng)
    found: list[Phrase] = []
    while options and len(found) < count:
        skill = choose(rng, options, [SKILLS[name] for name in options])
        phrases = [phrase for phrase in options.pop(skill) if phrase.words not in {p.words for p in found}]
        if phrases:
            found.append(choose(rng, phrases))
    return found
