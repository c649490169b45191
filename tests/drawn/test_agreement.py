"""Pairs of texts with a mark for every statement."""

from __future__ import annotations

from collections import Counter

from vlkit.drawn.accounts import Account, Said, statements
from vlkit.drawn.agreement import AGREED, DENIED, OPEN, label_of, marked
from vlkit.drawn.dice import Dice
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.samples import TRAIN, scene_and_rng


def test_labels_say_what_the_other_text_says() -> None:
    first = statements(Account((Said("car", "red"), Said("cat", "white", "small")), ("car", "left of", "cat")))
    turned = statements(Account((Said("cat", "white"), Said("car", "blue", "large")), ("cat", "right of", "car")))
    roles = statements(Account((Said("cat"), Said("car")), ("cat", "left of", "car")))
    assert label_of(("car", "colour"), first, turned) == label_of(("car", "colour"), turned, first) == DENIED
    assert label_of(("relation", "car", "cat"), first, turned) == AGREED
    assert label_of(("relation", "cat", "car"), roles, first) == DENIED
    assert label_of(("cat", "size"), first, turned) == label_of(("car", "size"), turned, first) == OPEN
    assert label_of(("car",), first, turned) == AGREED


def test_marks_stand_at_the_ends_of_the_words_that_state_something() -> None:
    found = Counter[int]()
    for index in range(300):
        scene, rng = scene_and_rng(3, TRAIN, index)
        source, marks = marked(scene, Dice(rng))
        ends = [end for end, _ in marks]
        assert ends == sorted(set(ends)) and all(source[end : end + 1] in ("", " ", ",") for end in ends)
        unmarked = set(source.split()) - {source[:end].split()[-1] for end in ends}
        assert not unmarked & set(KINDS)
        found.update(label for _, label in marks)
    assert found[AGREED] > found[OPEN] > found[DENIED] > 150


def test_examples_are_a_function_of_scene_and_generator() -> None:
    found = [[marked(s, Dice(r)) for s, r in (scene_and_rng(5, TRAIN, i) for i in range(30))] for _ in range(2)]
    assert found[0] == found[1]
