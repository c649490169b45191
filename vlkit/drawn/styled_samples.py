"""Endless samples of the second pre-training world, in chunks of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlkit.drawn.captions import DETAIL_WEIGHTS
from vlkit.drawn.captions_pretrain import DETAILS, caption_pretrain
from vlkit.drawn.dice import Dice
from vlkit.drawn.draw import render
from vlkit.drawn.graph import SIZES, Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.render_styled import render_styled
from vlkit.drawn.scenes import PATTERNS, sample_scene
from vlkit.drawn.styled_scenes import MOST, UNSEEN_KINDS, styled_scene
from vlkit.drawn.styles import Look, sample_look
from vlkit.drawn.words import COLOURS, with_article

TRAIN, VALIDATION, PROBE = 201, 202, 203
"""Numbers of the splits: part of every seed, and no number of the first world or of the demo."""
DEMO = "demo"
"""Evaluation only: drawings of the demo domain, of this world's kinds and in its words."""
KIND_NUMBERS, COLOUR_NUMBERS = list(KINDS), list(COLOURS)
LEVELS = ("kind", "colour", "all")
"""Level of detail of a phrase about a thing."""


@dataclass(frozen=True)
class Sample:
    """One drawn scene.

    Attributes:
        image: uint8 [96, 96, 3].
        ids: uint8 [96, 96]; 0 = ground, i + 1 = thing i.
        scene: what is to be seen.
        look: how it was drawn; None for the demo's own drawings.
        captions: true sentences.
    """

    image: np.ndarray
    ids: np.ndarray
    scene: Scene
    look: Look | None
    captions: tuple[str, ...]


def styled_sample(
    seed: int, split: int, index: int, style: str | None = None, detail: int | None = None, captions: int = 1
) -> Sample:
    """Sample ``index`` of an endless stream; a pure function of its arguments.

    Args:
        seed: of the world.
        split: :data:`TRAIN`, :data:`VALIDATION` or :data:`PROBE`.
        index: number of the sample.
        style: see :func:`vlkit.drawn.styles.sample_look`; also :data:`DEMO`.
        detail: level of the captions, 0 to 3; None draws a level for each.
        captions: how many.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, split, index])))
    look, scene, image, ids = _drawn(rng, style)
    levels = [detail] * captions if detail is not None else rng.choice(DETAILS, captions, p=DETAIL_WEIGHTS["pretrain"])
    return Sample(image, ids, scene, look, tuple(caption_pretrain(scene, rng, int(level)) for level in levels))


def _drawn(rng: np.random.Generator, style: str | None) -> tuple[Look | None, Scene, np.ndarray, np.ndarray]:
    if style == DEMO:
        while True:
            scene = sample_scene(rng, "demo")
            if len(scene.things) <= MOST and not any(thing.kind in UNSEEN_KINDS for thing in scene.things):
                break
        image, ids = render(scene)
        scene = Scene("pretrain", scene.things, scene.background, on=scene.on)
        return None, scene, np.asarray(image), ids[::2, ::2]
    dice = Dice(rng)
    look = sample_look(dice, style)
    scene = styled_scene(dice, look)
    return look, scene, *render_styled(scene, look)


def thing_code(thing: Thing) -> int:
    """Attributes of a thing in a phrase as one number: kind, colour, size and pattern."""
    kind, colour = KIND_NUMBERS.index(thing.kind), COLOUR_NUMBERS.index(thing.colour)
    size, pattern = list(SIZES).index(thing.size), PATTERNS.index(thing.pattern)
    return ((kind * len(COLOURS) + colour) * len(SIZES) + size) * len(PATTERNS) + pattern


PER_COLOUR = len(SIZES) * len(PATTERNS)
PER_KIND = len(COLOURS) * PER_COLOUR


def phrases(level: str) -> list[str]:
    """Every phrase of a level of :data:`LEVELS`; the phrase of a code is at :func:`phrase_numbers`."""
    if level == "kind":
        return [with_article(kind) for kind in KINDS]
    if level == "colour":
        return [with_article(f"{colour} {kind}") for kind in KINDS for colour in COLOURS]
    return [
        with_article(" ".join([size, colour, *([pattern] if pattern != "plain" else []), kind]))
        for kind in KINDS
        for colour in COLOURS
        for size in SIZES
        for pattern in PATTERNS
    ]


def phrase_numbers(codes: Tensor, level: str) -> Tensor:
    """Positions of the phrases of :func:`thing_code` numbers in the list of a level."""
    return codes // {"kind": PER_KIND, "colour": PER_COLOUR, "all": 1}[level]


class StyledChunks(Dataset[tuple[Tensor, Tensor, Tensor, list[tuple[str, ...]]]]):
    """Samples in chunks: images, ids, codes of things, captions.

    Args:
        seed: of the world.
        split: of the stream.
        count: how many chunks.
        size: samples a chunk.
        first: number of the first sample.
        style, detail, captions: see :func:`styled_sample`.
    """

    def __init__(
        self,
        seed: int,
        split: int,
        count: int,
        size: int,
        first: int = 0,
        style: str | None = None,
        detail: int | None = None,
        captions: int = 2,
    ) -> None:
        self.seed, self.split, self.count, self.size, self.first = seed, split, count, size, first
        self.style, self.detail, self.captions = style, detail, captions

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, list[tuple[str, ...]]]:
        """uint8 [size, 96, 96, 3], uint8 [size, 48, 48], int32 [size, MOST] (-1 = no thing), captions."""
        start = self.first + number * self.size
        samples = [
            styled_sample(self.seed, self.split, start + i, self.style, self.detail, self.captions)
            for i in range(self.size)
        ]
        codes = torch.full((self.size, MOST), -1, dtype=torch.int32)
        for row, sample in zip(codes, samples, strict=True):
            row[: len(sample.scene.things)] = torch.tensor([thing_code(thing) for thing in sample.scene.things])
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))
        ids = torch.from_numpy(np.stack([sample.ids[::2, ::2] for sample in samples]))
        return images, ids, codes, [sample.captions for sample in samples]
