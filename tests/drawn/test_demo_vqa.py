"""Questions of the demo world and the official files they are written to."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from helpers.demo_reader import NAMES, PATTERNS, PLURALS, related, resolve
from vlkit.data.check import check_dataset
from vlkit.data.sources import vqav2
from vlkit.data.sources.prepare import prepare
from vlkit.drawn.answers import alternatives, ten_answers
from vlkit.drawn.graph import Scene, Thing, place
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.make import make_world
from vlkit.drawn.question import Question
from vlkit.drawn.questions import TEMPLATES, questions
from vlkit.drawn.vqa import question_type
from vlkit.drawn.words import COLOURS
from vlkit.drawn.world import COUNTS, Style, generator, read_world, sample_scenes
from vlkit.files import sha256_of

COUNT = {"train": 30, "val": 6, "test": 10}
Asked = list[tuple[Scene, Question]]


def asked(seed: int, split: str, count: int, style: Style = "drawn") -> Asked:
    scenes = sample_scenes(seed, {split: count}, style)[split]
    return [(s, q) for i, s in enumerate(scenes) for q in questions(s, generator(seed, split, i, 9))]


@pytest.fixture(scope="module")
def many() -> Asked:
    return asked(5, "train", 500)


@pytest.fixture(scope="module", params=["drawn", "plain"])
def either(request: pytest.FixtureRequest, many: Asked) -> Asked:
    return many if request.param == "drawn" else asked(5, "train", 1500, "plain")


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COUNTS, "small", COUNT)
        return make_world(tmp_path_factory.mktemp("demo") / "world", seed=3, size="small", parts=("vqa",))


# --- Truth: read again from the words alone ---


def the(words: str, scene: Scene) -> Thing:
    (number,) = resolve(words, scene)
    return scene.things[number]


def number_of(words: str, scene: Scene) -> int:
    if words in PLURALS:
        return sum(thing.kind == PLURALS[words] for thing in scene.things)
    if words in COLOURS:
        return sum(thing.colour == words for thing in scene.things)
    if words in PATTERNS:
        return sum(thing.pattern == PATTERNS[words] for thing in scene.things)
    assert words == "", words
    return len(scene.things)


def colour_of_all(words: str, scene: Scene) -> str:
    (colour,) = {thing.colour for thing in scene.things if thing.kind == PLURALS[words]}
    return colour


def statement(words: str, scene: Scene) -> str:
    """``cat above the star``: yes if the cat is one that the whole phrase fits."""
    first, whole = related(words, scene)
    assert len(first) == 1
    return "yes" if whole == first else "no"


def bigger(first: str, word: str, second: str, scene: Scene) -> str:
    a, b = the(first, scene).scale, the(second, scene).scale
    return "yes" if (a > b) == (word == "bigger") else "no"


def more(word: str, first: str, second: str, scene: Scene) -> str:
    a, b = number_of(first, scene), number_of(second, scene)
    return "yes" if (a > b if word == "more" else a < b) else "no"


def outermost(word: str, scene: Scene) -> str:
    (number,) = resolve({"furthest left": "leftmost", "furthest right": "rightmost"}.get(word, word) + " thing", scene)
    return scene.things[number].kind


def related_kind(words: str, scene: Scene) -> str:
    (number,) = related(f"thing {words}", scene)[1]
    return scene.things[number].kind


def of_group(group: str, scene: Scene) -> str:
    (kind,) = {thing.kind for thing in scene.things if KINDS[thing.kind].group == group}
    return kind


ARTICLE = "(?:an|a) "
READERS = (
    (f"(?:is there|can you see) {ARTICLE}(.+?)(?: in the picture)?", lambda s, w: "yes" if resolve(w, s) else "no"),
    ("are there (more|fewer) (.+) than (.+)", lambda s, w, a, b: more(w, a, b, s)),
    ("is the (.+) (bigger|smaller) than the (.+)", lambda s, a, w, b: bigger(a, w, b, s)),
    ("is the (.+ (?:left of|right of|above|over|below|under) the .+)", lambda s, w: statement(w, s)),
    (
        f"is the (.+) ({'|'.join(PATTERNS)})",
        lambda s, a, w: "yes" if the(a, s).pattern == PATTERNS[w] else "no",
    ),
    (f"is the (.+) ({'|'.join(COLOURS)})", lambda s, a, w: "yes" if the(a, s).colour == w else "no"),
    ("how many (?:things|objects) are (?:there|in the picture)", lambda s: str(len(s.things))),
    ("how many things are (.+)", lambda s, w: str(number_of(w, s))),
    ("how many (.+?)(?: things)? (?:are there|are in the picture|can you see)", lambda s, w: str(number_of(w, s))),
    ("what color is the (.+)", lambda s, w: the(w, s).colour),
    ("what color are the (.+)", lambda s, w: colour_of_all(w, s)),
    ("what is (furthest left|furthest right|highest|lowest)", lambda s, w: outermost(w, s)),
    ("what is ((?:on|left of|right of|to the .+ of|above|over|below|under) the .+)", lambda s, w: related_kind(w, s)),
    ("what is the (.+)", lambda s, w: the(w, s).kind),
    ("what (.+) is in the picture", lambda s, w: of_group(w, s)),
    ("where is the (.+)", lambda s, w: place(the(w, s))),
    ("(?:what size|how big) is the (.+)", lambda s, w: the(w, s).size),
    ("what pattern does the (.+) have", lambda s, w: the(w, s).pattern),
    (
        "which is (bigger|smaller), the (.+) or the (.+)",
        lambda s, w, a, b: NAMES[sorted((a, b), key=lambda n: the(n, s).scale)[-1 if w == "bigger" else 0]],
    ),
)


def test_every_answer_is_true(either: Asked) -> None:
    checked = Counter()
    for scene, question in either:
        words = question.text[0].lower() + question.text[1:].removesuffix("?")
        match, read = next((m, read) for pattern, read in READERS if (m := re.fullmatch(pattern, words)))
        assert read(scene, *match.groups()) == question.answer, (question, scene.things)
        checked[question.template] += 1
    assert set(checked) == {name for forms in TEMPLATES.values() for name in forms}
    assert min(checked.values()) >= 8 and sum(checked.values()) >= 4 * 500


# --- Balance ---


def test_yes_and_no_are_balanced_in_every_form(either: Asked) -> None:
    yes, total = Counter(), Counter()
    for _, question in either:
        if question.answer_type == "yes/no":
            total[question.template] += 1
            yes[question.template] += question.answer == "yes"
    assert len(total) == 7
    for form, count in total.items():  # four standard deviations of a coin
        assert abs(yes[form] - count / 2) < 2 * np.sqrt(count) + 1, (form, yes[form], count)


def test_other_answers_are_spread(many: Asked) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in many:
        answers[question.matter][question.answer] += 1
    shares = {matter: max(counts.values()) / sum(counts.values()) for matter, counts in answers.items()}
    assert set(answers["colour"]) == set(COLOURS) and shares["colour"] < 0.2
    assert len(answers["kind"]) == len(KINDS) and shares["kind"] < 0.1
    assert set(answers["number"]) >= {"0", "1", "2", "3", "4", "5"} and shares["number"] < 0.5
    assert len(answers["place"]) == 9 and shares["place"] < 0.3
    assert len(answers["size"]) == 3 and shares["size"] < 0.6
    assert len(answers["pattern"]) == 4 and shares["pattern"] < 0.5


def test_words_alone_do_not_give_the_answer_away(many: Asked) -> None:
    """The most frequent training answer of a question's words, else of its form, is right on few new questions."""
    by_text, by_form = defaultdict(Counter), defaultdict(Counter)
    for _, question in many:
        by_text[question.text][question.answer] += 1
        by_form[question.template][question.answer] += 1
    right = [
        (by_text.get(q.text) or by_form[q.template]).most_common(1)[0][0] == q.answer for _, q in asked(6, "test", 200)
    ]
    assert len(right) > 800 and np.mean(right) < 0.45


# --- Ten answers ---


def test_most_people_say_what_is_true_and_some_do_not(many: Asked) -> None:
    rng = np.random.default_rng(0)
    unanimous, said = [], defaultdict(set)
    for _, question in many:
        answers = ten_answers(question, rng)
        assert [a["answer_id"] for a in answers] == list(range(1, 11))
        assert {a["answer_confidence"] for a in answers} <= {"yes", "maybe", "no"}
        counts = Counter(a["answer"] for a in answers)
        assert counts[question.answer] >= 6
        assert set(counts) <= {question.answer, *alternatives(question)}
        unanimous.append(len(counts) == 1)
        said[question.answer] |= set(counts)
    assert 0.5 < np.mean(unanimous) < 0.85
    assert {"navy", "dark blue", "sky blue"} & said["blue"] and "grey" in said["gray"]
    assert {"3", "4", "5"} <= said["4"] and {"upper left", "left"} <= said["top left"]


def test_small_counts_are_rarely_missed() -> None:
    rng = np.random.default_rng(0)
    missed = {
        n: np.mean([len({a["answer"] for a in ten_answers(_count(n), rng)}) > 1 for _ in range(300)]) for n in "15"
    }
    assert missed["1"] < 0.2 < 0.4 < missed["5"]


def _count(answer: str) -> Question:
    return Question("count all", "How many things are there?", answer, "number")


# --- Files ---


def test_files_have_the_official_layout(world_folder: Path) -> None:
    for split, count in COUNT.items():
        folder, name = world_folder / "vqa", f"{split}2024"
        asked_file = json.loads((folder / f"v2_OpenEnded_mscoco_{name}_questions.json").read_text())
        answered_file = json.loads((folder / f"v2_mscoco_{name}_annotations.json").read_text())
        for content in (asked_file, answered_file):
            assert content["data_subtype"] == name and content["data_type"] == "mscoco"
        assert asked_file["task_type"] == "Open-Ended"
        asked, answered = asked_file["questions"], answered_file["annotations"]
        assert [q["question_id"] for q in asked] == [a["question_id"] for a in answered]
        assert len({q["question_id"] for q in asked}) == len(asked) >= 4 * count * 0.8
        assert len({q["image_id"] for q in asked}) == count
        for question, annotation in zip(asked, answered, strict=True):
            assert set(question) == {"image_id", "question", "question_id"}
            assert question["question_id"] // 1000 == question["image_id"] == annotation["image_id"]
            assert annotation["answer_type"] in ("yes/no", "number", "other")
            assert question["question"].lower().startswith(annotation["question_type"])
            given = Counter(answer["answer"] for answer in annotation["answers"])
            assert given.most_common(1)[0][0] == annotation["multiple_choice_answer"] and given.total() == 10


def test_question_types_are_the_longest_beginnings() -> None:
    assert question_type("What color is the cat?") == "what color is the"
    assert question_type("Is there a cat?") == "is there a" and question_type("Is there one?") == "is there"
    assert question_type("Whose cat?") == "none of the above"


def test_converter_prepares_the_files_without_special_cases(world_folder: Path, tmp_path: Path) -> None:
    folder = world_folder / "vqa"
    source = vqav2.read(sorted(folder.glob("*questions.json")), sorted(folder.glob("*annotations.json")))
    prepared = prepare(source, tmp_path / "data", world_folder)
    assert prepared.notes == [] and list(prepared.dataset.splits) == ["train", "val", "test"]
    report = check_dataset(prepared.dataset, workers=1)
    assert report.problems == [] and report.records > 150


def test_a_part_added_later_is_the_same(world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTS, "small", COUNT)
    make_world(tmp_path / "w", seed=3, size="small", parts=())
    make_world(tmp_path / "w", seed=3, size="small", parts=("vqa",))
    first, second = (
        {str(p.relative_to(root)): sha256_of(p) for p in root.rglob("*") if p.is_file()}
        for root in (world_folder, tmp_path / "w")
    )
    assert first == second and any(name.startswith("vqa/") for name in first)


def test_world_read_back_is_the_world_that_was_drawn(world_folder: Path) -> None:
    world = read_world(world_folder, seed=3, side=96)
    assert {split: len(images) for split, images in world.images.items()} == COUNT
    assert [p.scene for p in world.images["train"]] == sample_scenes(3, COUNT)["train"]
    assert all(len(p.captions) == 5 and len(p.boxes) == len(p.scene.things) for p in world.images["test"])
