"""English captions of a scene, all of them true."""

from __future__ import annotations

import numpy as np

from vlkit.drawn.captions_demo import caption_demo
from vlkit.drawn.captions_pretrain import DETAILS, caption_pretrain
from vlkit.drawn.graph import Scene

LONGEST = 32
"""Maximum number of words in a caption."""
TRIES = 40
"""Attempts at a caption that is short enough and new."""
DETAIL_WEIGHTS = {"pretrain": (0.08, 0.17, 0.3, 0.45), "demo": (0.05, 0.2, 0.4, 0.35)}


def caption(scene: Scene, rng: np.random.Generator, detail: int | None = None) -> str:
    """One caption in the words of the scene's domain, lower case, without a full stop, at most ``LONGEST`` words
    unless the scene holds far more things than the sampled ones.

    Args:
        scene: what to describe.
        rng: source of every choice.
        detail: 0 (kinds only) to 3 (sizes, colours, patterns, kinds, places); None draws a level.
    """
    write = caption_pretrain if scene.domain == "pretrain" else caption_demo
    if detail is None:
        detail = int(rng.choice(DETAILS, p=DETAIL_WEIGHTS[scene.domain]))
    texts = []
    while len(texts) < TRIES:
        texts.append(write(scene, rng, detail))
        if len(texts[-1].split()) <= LONGEST:
            return texts[-1]
    return min(texts, key=len)


def captions(scene: Scene, rng: np.random.Generator, n: int = 5) -> list[str]:
    """``n`` different captions (:func:`caption`).

    Raises:
        ValueError: the scene is too simple for so many.
    """
    found: dict[str, None] = {}
    for _ in range(TRIES * n):
        found[caption(scene, rng)] = None
        if len(found) == n:
            return list(found)
    raise ValueError(f"found {len(found)} different captions of a scene with {len(scene.things)} things, not {n}")
