"""Pairs of texts with a mark for every statement."""

from __future__ import annotations

from collections import Counter

from vlkit.drawn.accounts import VERDICTS, Account, Said, about, statements, verdict_on
from vlkit.drawn.agreement import ADDED, AGREED, DENIED, LEFT_OUT, label_of, marked
from vlkit.drawn.dice import Dice
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.samples import TRAIN, scene_and_rng


def test_labels_say_what_the_other_text_says() -> None:
    first = statements(Account((Said("car", "red"), Said("cat", "white", "small")), ("car", "left of", "cat")))
    turned = statements(Account((Said("cat", "white"), Said("car", "blue", "large")), ("cat", "right of", "car")))
    roles = statements(Account((Said("cat"), Said("car")), ("cat", "left of", "car")))
    assert label_of(("car", "colour"), first, turned, LEFT_OUT) == DENIED
    assert label_of(("car", "colour"), turned, first, ADDED) == DENIED
    assert label_of(("relation", "car", "cat"), first, turned, LEFT_OUT) == AGREED
    assert label_of(("relation", "cat", "car"), roles, first, ADDED) == DENIED
    assert label_of(("cat", "size"), first, turned, LEFT_OUT) == LEFT_OUT
    assert label_of(("car", "size"), turned, first, ADDED) == ADDED
    assert label_of(("car",), first, turned, LEFT_OUT) == AGREED


def test_marks_stand_at_the_ends_of_the_words_that_state_something() -> None:
    found, verdicts = Counter[int](), Counter[int]()
    for index in range(300):
        scene, rng = scene_and_rng(3, TRAIN, index)
        source, marks, things, verdict = marked(scene, Dice(rng))
        verdicts[verdict] += 1
        ends = [end for end, _ in marks + things]
        assert len(ends) == len(set(ends)) and all(source[end : end + 1] in ("", " ", ",") for end in ends)
        unmarked = set(source.split()) - {source[:end].split()[-1] for end in ends}
        assert not unmarked & set(KINDS)
        found.update(label for _, label in marks)
    assert found[AGREED] > 1000 and min(found.values()) > 80 and len(found) == 4
    assert min(verdicts.values()) > 25 and len(verdicts) == len(VERDICTS)


def test_the_verdict_on_a_pair_follows_from_those_on_its_things() -> None:
    parts = {"equal": set(), "less": {"less"}, "more": {"more"}, "open": {"less", "more"}, "false": {"false"}}
    silent = {AGREED: set(), LEFT_OUT: {"less"}, ADDED: {"more"}, DENIED: {"false"}}
    for index in range(300):
        scene, rng = scene_and_rng(4, TRAIN, index)
        _, marks, things, verdict = marked(scene, Dice(rng))
        said = set().union(*(parts[VERDICTS[number]] for _, number in things), *(silent[label] for _, label in marks))
        expected = "false" if "false" in said else next(name for name, part in parts.items() if part == said)
        assert VERDICTS[verdict] == expected


def test_things_have_verdicts_of_their_own() -> None:
    known = statements(Account((Said("car", "red"), Said("cat", "white", "small")), ("car", "left of", "cat")))
    said = statements(
        Account((Said("cat", "white"), Said("car", "red", "large"), Said("hat")), ("cat", "right of", "car"))
    )
    found = {kind: verdict_on(about(kind, known), about(kind, said)) for kind in ("car", "cat", "hat")}
    assert found == {"car": "more", "cat": "less", "hat": "more"}
    turned = known | {("relation", "car", "cat"): "above", ("relation", "cat", "car"): "below"}
    assert verdict_on(about("cat", known), about("cat", turned)) == "false"


def test_examples_are_a_function_of_scene_and_generator() -> None:
    found = [[marked(s, Dice(r)) for s, r in (scene_and_rng(5, TRAIN, i) for i in range(30))] for _ in range(2)]
    assert found[0] == found[1]
