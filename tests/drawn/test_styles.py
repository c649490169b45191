"""The second pre-training world: its styles, what training never sees, and the first world, which must not change."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from vlkit.drawn.captions import caption
from vlkit.drawn.dice import Dice
from vlkit.drawn.draw import shaded
from vlkit.drawn.samples import TRAIN as PLAIN_TRAIN
from vlkit.drawn.samples import scene_and_rng
from vlkit.drawn.styled_samples import (
    DEMO,
    LEVELS,
    TRAIN,
    VALIDATION,
    Sample,
    StyledChunks,
    phrase_numbers,
    phrases,
    styled_sample,
    thing_code,
)
from vlkit.drawn.styled_scenes import UNSEEN_KINDS, size_word
from vlkit.drawn.styles import HELD_OUT, MIXED, SEEN, sample_look
from vlkit.drawn.words import COLOURS, SHADES, SYNONYMS

STYLES = (*SEEN, *HELD_OUT, MIXED, DEMO)
PLAIN_STREAM = "70579896f0f4e5be"


def samples(style: str | None, count: int, split: int = VALIDATION) -> list[Sample]:
    return [styled_sample(5, split, index, style, captions=2) for index in range(count)]


def dice(seed: int) -> Dice:
    return Dice(np.random.Generator(np.random.PCG64(seed)))


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_the_same_each_time(style: str) -> None:
    for first, second in zip(samples(style, 4), samples(style, 4), strict=True):
        assert first.image.shape == (96, 96, 3) and first.image.dtype == np.uint8
        assert np.array_equal(first.image, second.image) and np.array_equal(first.ids, second.ids)
        assert first.scene == second.scene and first.captions == second.captions
        assert first.image.std() > 2


@pytest.mark.parametrize("style", [style for style in (*SEEN, *HELD_OUT) if style not in ("plain", "crop", "turned")])
def test_a_style_is_seen_in_the_image(style: str) -> None:
    """The same stream, but for the style, gives another image."""
    assert any(
        not np.array_equal(plain.image, styled.image)
        for plain, styled in zip(samples("plain", 4), samples(style, 4), strict=True)
    )


def test_samples_differ_by_seed_split_and_index() -> None:
    images = [styled_sample(seed, split, i).image for seed in (1, 2) for split in (TRAIN, VALIDATION) for i in (0, 1)]
    assert len({image.tobytes() for image in images}) == 8


def test_training_has_every_seen_style_and_no_held_out_one() -> None:
    looks = [sample_look(dice(seed)) for seed in range(1500)]
    assert not any(look.fill == "hatched" or look.mosaic for look in looks)
    assert {look.fill for look in looks} == {"flat", "shaded", "grainy", "patchy"}
    assert {look.line for look in looks} == {"none", "edge", "outline", "sketch"}
    assert len({look.ground for look in looks}) == 9
    for name in ("dark", "shadow", "crop", "inverted", "clutter", "blur", "noise", "jpeg", "turn"):
        assert 0.03 < np.mean([bool(getattr(look, name)) for look in looks]) < 0.6, name
    assert all(look.fill == "hatched" for look in (sample_look(dice(i), "hatched") for i in range(20)))
    assert all(look.mosaic == 2 for look in (sample_look(dice(i), "mosaic") for i in range(20)))


def test_training_has_no_unseen_kind_and_no_word_of_the_demo() -> None:
    found = samples(None, 300, TRAIN)
    assert not {thing.kind for sample in found for thing in sample.scene.things} & set(UNSEEN_KINDS)
    shades = {name for names in SHADES.values() for words in names.values() for name in words}
    demo_words = {*UNSEEN_KINDS, *(name for names in SYNONYMS.values() for name in names), *shades}
    # A flat ground may be called light blue in the first world; here no ground is named.
    for text in (text for sample in found for text in sample.captions):
        padded = f" {text.replace(',', '')} "
        assert not [word for word in demo_words if f" {word} " in padded], text
        assert "background" not in text


def test_things_stand_where_the_ids_say() -> None:
    """Boxes of ids are those of the things, also in enlarged parts of a scene; sizes are what is seen."""
    for sample in samples("crop", 60):
        shown = 0
        for number, thing in enumerate(sample.scene.things):
            rows, columns = np.nonzero(sample.ids == number + 1)
            assert thing.size == size_word(thing.scale)
            if not len(rows):
                continue  # behind another thing
            shown += 1
            half = thing.scale / 2 * 1.15 * 96 + 2
            assert columns.min() >= thing.x * 96 - half and columns.max() <= thing.x * 96 + half
            assert rows.min() >= thing.y * 96 - half and rows.max() <= thing.y * 96 + half
        assert shown
    zoomed = [thing.scale for sample in samples("crop", 60) for thing in sample.scene.things]
    assert max(zoomed) > 0.5


def test_colours_are_those_of_the_words() -> None:
    """The median colour of a plain thing is nearest to a version of the colour that its word names."""
    right = total = 0
    for sample in samples("bare", 120):
        thing = sample.scene.things[-1]
        if thing.pattern != "plain" or thing.kind not in ("circle", "square", "heart", "star", "triangle", "diamond"):
            continue
        pixels = np.median(sample.image[sample.ids == len(sample.scene.things)], axis=0)
        far = {c: np.abs(np.array(shaded(rgb, thing.shade)) - pixels).sum() for c, rgb in COLOURS.items()}
        total, right = total + 1, right + (min(far, key=far.get) == thing.colour)
    assert total > 5 and right == total


def test_phrases_of_codes_say_what_the_thing_is() -> None:
    for sample in samples(None, 20):
        for thing in sample.scene.things:
            code = torch.tensor(thing_code(thing))
            kind, colour, everything = (phrases(level)[phrase_numbers(code, level)] for level in LEVELS)
            assert kind.split()[-1] == thing.kind and kind.split()[0] in ("a", "an")
            assert colour.split()[1:] == [thing.colour, thing.kind]
            pattern = [] if thing.pattern == "plain" else [thing.pattern]
            assert everything == " ".join(["a", thing.size, thing.colour, *pattern, thing.kind])


def test_chunks_hold_the_samples_of_the_stream() -> None:
    images, ids, codes, captions = StyledChunks(5, TRAIN, 3, 4, first=8)[2]
    sample = styled_sample(5, TRAIN, 8 + 2 * 4 + 1, captions=2)
    assert np.array_equal(images[1].numpy(), sample.image)
    assert np.array_equal(ids[1].numpy(), sample.ids[::2, ::2])
    assert captions[1] == sample.captions
    assert [code for code in codes[1].tolist() if code >= 0] == [thing_code(thing) for thing in sample.scene.things]


def test_the_first_world_is_as_it_was() -> None:
    """The base ``tiny`` saw this stream: scenes and captions of its first samples, as they were then."""
    digest = hashlib.sha256()
    for index in range(40):
        scene, rng = scene_and_rng(2024, PLAIN_TRAIN, index)
        digest.update((json.dumps(scene.to_json()) + caption(scene, rng)).encode())
    assert digest.hexdigest().startswith(PLAIN_STREAM)
