"""Captions of the demo world: every claim is checked against the scene by a small parser of its own."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from vlkit.drawn.captions import LONGEST, caption, captions
from vlkit.drawn.captions_demo import PATTERN_TAILS, PATTERN_WORDS, RELATIONS, SIZE_WORDS
from vlkit.drawn.captions_demo import PLACES as DEMO_PLACES
from vlkit.drawn.captions_pretrain import PLACES as PRETRAIN_PLACES
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.scenes import Scene, Thing, place, sample_scene
from vlkit.drawn.words import COLOURS, FAMILIAR, SHADES, SYNONYMS, plural, with_article
from vlkit.drawn.world import generator

DOMAINS = ("pretrain", "demo")


def scenes_of(domain: str, count: int, seed: int = 5) -> list[tuple[Scene, np.random.Generator]]:
    found = []
    for index in range(count):
        rng = generator(seed, "train", index)
        found.append((sample_scene(rng, domain), rng))
    return found


NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
PATTERNS = {word: p for p, words in PATTERN_WORDS.items() for word in words} | {p: p for p in PATTERN_WORDS}
TAILS = {text: p for p, text in PATTERN_TAILS.items()}
SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words} | {"medium": "medium"}
PLACES = {text: p for p, texts in DEMO_PLACES.items() for text in texts} | {t: p for p, t in PRETRAIN_PLACES.items()}
SETTINGS = {
    "night": "at night|in the dark|under a starry sky",
    "room": "in a room|indoors|inside a room",
    "field": "in a meadow|outdoors|in a grassy field",
    "sea": "at the seaside|by the sea|at the beach",
    "paper": "on squared paper|on graph paper",
}
RELATED = {text: r for r, texts in RELATIONS.items() for text in texts} | {
    "to the left of": "left of",
    "to the right of": "right of",
    "below": "below",
    "on": "on",
    "beside": "beside",
    "next to": "beside",
    "close to": "beside",
}
FILLERS = {
    *("and", "with", "you", "can", "see", "somebody", "drew", "a", "sketch", "showing", "here", "is", "are", "we"),
    *("picture", "drawing", "of", "there", "sit", "sits", "be", "found", "objects", "items", "including", "among"),
    *("them", "three", "four", "five", "two"),
}


def colour_meanings() -> dict[str, set[tuple[str, str]]]:
    """Word -> the (colour, shade) it may stand for."""
    found: dict[str, set[tuple[str, str]]] = {}
    for colour in COLOURS:
        for shade, words in SHADES[colour].items():
            for word in (colour, *words):
                found.setdefault(word, set()).add((colour, shade))
    return found


def kind_names() -> dict[str, str]:
    found = {}
    for kind in KINDS:
        for name in (kind, *FAMILIAR.get(kind, ()), *SYNONYMS[kind]):
            assert found.get(name, kind) == kind, f"{name} names two kinds"
            found[name] = kind
    return found


COLOUR_MEANINGS, KIND_NAMES = colour_meanings(), kind_names()


def options(words: object) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


NAMES = {**KIND_NAMES, **{plural(name): kind for name, kind in KIND_NAMES.items()}}
PHRASE = re.compile(
    rf"\b(?P<number>{options(NUMBERS)})(?: (?P<size>{options(SIZES)}))?(?: (?P<pattern>{options(PATTERNS)}))?"
    rf"(?: (?P<colour>{options(COLOUR_MEANINGS)}))?(?: (?P<pattern2>{options(PATTERNS)}))?"
    rf" (?P<name>{options(NAMES)})\b(?: (?P<tail>{options(TAILS)}))?(?: (?P<place>{options(PLACES)})\b)?"
)


def shade_of(thing: Thing) -> str:
    return "dark" if thing.shade < -0.4 else "light" if thing.shade > 0.4 else "mid"


def meant(phrase: re.Match[str], scene: Scene) -> list[Thing]:
    """The things of the scene that fit every word of a phrase."""
    words = phrase.groupdict()
    pattern = PATTERNS.get(words["pattern"] or words["pattern2"] or "") or TAILS.get(words["tail"] or "")
    return [
        thing
        for thing in scene.things
        if thing.kind == NAMES[words["name"]]
        and (words["size"] is None or thing.size == SIZES[words["size"]])
        and (pattern is None or thing.pattern == pattern)
        and (words["colour"] is None or (thing.colour, shade_of(thing)) in COLOUR_MEANINGS[words["colour"]])
        and (words["place"] is None or place(thing) == PLACES[words["place"]])
    ]


def holds(relation: str, a: Thing, b: Thing) -> bool:
    dx, dy = a.x - b.x, a.y - b.y
    sideways = abs(dx) > abs(dy)
    return {
        "left of": dx < 0 and sideways,
        "right of": dx > 0 and sideways,
        "beside": sideways and abs(dx) <= 0.5,
        "above": dy < 0 and not sideways,
        "below": dy > 0 and not sideways,
        "on": dy < 0 and abs(dx) <= 0.1 * b.scale + 1e-3,
    }[relation]


def check_true(text: str, scene: Scene) -> int:
    """Check every claim of a caption, and that no word of it was left unchecked; returns how many phrases it had."""
    for style, words in SETTINGS.items():
        if found := re.search(rf" ({words})$", text):
            assert scene.background.style == style, text
            text = text[: found.start()]
    if found := re.search(r" on a ([a-z ]+) background$", text):
        assert scene.background.colour == found[1], text
        text = text[: found.start()]
    if found := re.match(r"(\w+) (objects|items)", text):
        assert len(scene.things) == NUMBERS[found[1]], text
    phrases = list(PHRASE.finditer(text))
    assert phrases, text
    gaps = []
    for phrase, following in zip(phrases, [*phrases[1:], None], strict=True):
        assert len(meant(phrase, scene)) >= NUMBERS[phrase["number"]], (text, phrase[0])
        gap = text[phrase.end() : following.start() if following else None].strip(" ,")
        related = re.sub(r"^(is|are|sits|sit|can be found) ", "", gap)
        if following and related in RELATED:
            firsts, seconds = meant(phrase, scene), meant(following, scene)
            assert any(holds(RELATED[related], a, b) for a in firsts for b in seconds if a is not b), (text, gap)
        else:
            gaps.append(gap)
    left_over = " ".join([text[: phrases[0].start()], *gaps]).replace(",", " ").replace(":", " ").split()
    assert set(left_over) <= FILLERS, (text, left_over)
    return len(phrases)


@pytest.mark.parametrize("domain", DOMAINS)
def test_captions_are_true_and_say_nothing_unchecked(domain: str) -> None:
    checked = relations = places = 0
    for scene, rng in scenes_of(domain, 400):
        for text in captions(scene, rng):
            checked += check_true(text, scene)
            relations += any(f" {words} a" in text for words in RELATED)
            places += any(words in text for words in PLACES)
    assert checked > 3000 and relations > 100 and places > 300


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_hand_made_scenes_of_any_number_are_described(domain: str, count: int) -> None:
    scene, rng = scenes_of(domain, 1)[0]
    cup = Thing("cup", "green", "small", "plain", 0.1, 0.5, 0.2)
    alike = tuple(dataclasses.replace(cup, x=0.1 * (i + 1)) for i in range(count))
    for text in captions(dataclasses.replace(scene, things=alike, on=()), rng, 3):
        assert re.search("cup|mug", text)
        assert "here is two" not in text and "here are a" not in text


def test_the_truth_check_notices_lies() -> None:
    scene = next(s for s, _ in scenes_of("pretrain", 50) if len(s.things) == 1)
    thing = scene.things[0]
    other = "red" if thing.colour != "red" else "blue"
    for lie in (
        f"a {other} {thing.kind}",
        f"two {plural(thing.kind)}",
        f"{with_article(thing.kind)} and {with_article('cat' if thing.kind != 'cat' else 'car')}",
        f"{with_article(thing.kind)} that glows",
    ):
        with pytest.raises(AssertionError):
            check_true(lie, scene)


@pytest.mark.parametrize("domain", DOMAINS)
def test_captions_differ_and_are_well_formed(domain: str) -> None:
    for scene, rng in scenes_of(domain, 300):
        texts = captions(scene, rng, 5)
        assert len(set(texts)) == 5
        for text in texts:
            assert text == text.lower().strip() and "  " not in text and text[-1].isalpha()
            assert 2 <= len(text.split()) <= LONGEST
            assert not re.search(r"\ba [aeiou]", text) and not re.search(r"\ban [^aeiou]", text)
            assert not re.search(r"\b(\w+) \1\b", text)


def test_detail_adds_words_and_the_highest_level_tells_size_colour_and_place() -> None:
    means = []
    for detail in range(4):
        texts = [(scene, caption(scene, rng, detail)) for scene, rng in scenes_of("pretrain", 200)]
        means.append(np.mean([len(text.split()) for _, text in texts]))
    assert means[0] < means[1] < means[2] < means[3]
    for scene, text in texts:
        for thing in scene.things:
            assert thing.size in text and thing.colour in text and PRETRAIN_PLACES[place(thing)] in text


def test_the_demo_domain_has_its_own_words() -> None:
    """Most other names of things and colours are never heard in pre-training; a few are, rarely."""
    texts = [caption(scene, rng) for scene, rng in scenes_of("pretrain", 3000)]
    heard = Counter(word for text in texts for word in re.findall(r"[a-z-]+", text))
    new = {name for names in SYNONYMS.values() for name in names if " " not in name}
    assert len(new) > 30 and not new & set(heard)
    familiar = {name for names in FAMILIAR.values() for name in names if " " not in name} - {"light"}  # "light blue"
    assert len(familiar) > 5 and all(0 < heard[name] / len(texts) < 0.02 for name in familiar)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("car", "cars"),
        ("cross", "crosses"),
        ("leaf", "leaves"),
        ("toy ball", "toy balls"),
        ("kitty", "kitties"),
        ("fish", "fish"),
        ("cactus", "cacti"),
        ("key", "keys"),
        ("snowman", "snowmen"),
    ],
)
def test_plural(name: str, expected: str) -> None:
    assert plural(name) == expected
