"""The demo dataset of classification: one thing per image, whose kind is the class, in a style new to the bases."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlkit.drawn.dice import Dice
from vlkit.drawn.graph import Background, Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.render_styled import render_styled
from vlkit.drawn.styled_scenes import size_word, visible_colours
from vlkit.drawn.styles import HELD_OUT, Look
from vlkit.drawn.world import JPEG_QUALITY, World, generator, mapped
from vlkit.files import write_text

STREAM = 5
"""Stream number for this use of the world's generators (:func:`vlkit.drawn.world.generator`)."""
PER_CLASS = {"train": 16, "val": 4, "test": 20}
"""Images of each kind by split: 16 shots, and as many for validation as the few-shot protocol takes."""
TEMPLATES = ("{}", "a {}", "a drawing of a {}")
"""Class prompts of the dataset."""
MOSAIC = 3
"""Side of the cells in pixels."""
SPLIT_FILE = "split_kinds.json"
DARK = 0.5
"""Exposure of the dark images."""

Item = tuple[str, str, int]
"""(split, kind, number)"""


def write_kind_images(world: World, folder: Path, exposure: float = 1.0) -> None:
    """Write the images of every kind, and a split file in the format of CoOp, into ``folder``.

    Args:
        world: its seed and side are used.
        folder: exists and is empty.
        exposure: factor on all pixel values, 0 to 1. Below 1 the images are those of a camera that lets too little
            light in: a shift that a prompt added to the image can undo.
    """
    items = [(split, kind, i) for split, count in PER_CLASS.items() for kind in KINDS for i in range(count)]
    for split in PER_CLASS:
        for kind in KINDS:
            (folder / split / kind).mkdir(parents=True)
    listed: dict[str, list[tuple[str, int, str]]] = {split: [] for split in PER_CLASS}
    numbers = {kind: number for number, kind in enumerate(KINDS)}
    draw = partial(draw_kind, seed=world.seed, side=world.side, folder=folder, exposure=exposure)
    for (split, kind, _), name in zip(items, mapped(draw, items, world.workers, "draw kinds"), strict=True):
        listed[split].append((name, numbers[kind], kind))
    write_text(folder / SPLIT_FILE, json.dumps(listed) + "\n")


def draw_kind(item: Item, seed: int, side: int, folder: Path, exposure: float = 1.0) -> str:
    """Write the image of an item to ``split/kind/NUMBER.jpg`` below ``folder``; that name.

    Args:
        item: its split and kind are sub-folders that exist.
        seed: of the world.
        side: width and height in pixels.
        folder: where.
        exposure: factor on all pixel values, 0 to 1.
    """
    split, kind, number = item
    name = f"{split}/{kind}/{number + 1:04d}.jpg"
    dice = Dice(generator(seed, split, list(KINDS).index(kind) * 10_000 + number, STREAM))
    image = Image.fromarray(kind_image(kind, dice))
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    if exposure != 1:
        image = image.point([round(value * exposure) for value in range(256)] * 3)
    image.save(folder / name, quality=JPEG_QUALITY, subsampling=0)
    return name


def kind_image(kind: str, dice: Dice) -> np.ndarray:
    """An image of one thing of a kind, uint8 [96, 96, 3], hatched by hand and in coarse cells of one colour.

    Pre-training has neither (:data:`vlkit.drawn.styles.HELD_OUT`), and four of the kinds are new to it too.
    """
    look = Look(
        line="sketch", width=dice.uniform(0.6, 1.3), turn=25.0, clutter=dice.integer(8), seed=dice.integer(2**31)
    )
    look = replace(HELD_OUT["hatched"](look, dice), mosaic=MOSAIC)
    colour, low, high = dice.one_of(visible_colours(look))
    scale = dice.uniform(0.3, 0.6)
    half = scale / 2
    thing = Thing(
        kind=kind,
        colour=colour,
        size=size_word(scale),
        pattern="plain",
        x=dice.uniform(half, 1 - half),
        y=dice.uniform(half, 1 - half),
        scale=scale,
        angle=dice.uniform(-look.turn, look.turn),
        shade=dice.uniform(low, high),
        seed=dice.integer(512),
    )
    return render_styled(Scene("pretrain", (thing,), Background("styled", "")), look)[0]
