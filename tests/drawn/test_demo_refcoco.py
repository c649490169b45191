"""Referring expressions of the demo world and the official files they are written to."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.demo_reader import resolve
from vlkit.data.check import check_dataset
from vlkit.data.restricted_pickle import read_pickle
from vlkit.data.sources import refcoco
from vlkit.data.sources.prepare import prepare
from vlkit.drawn.coco import annotation_id
from vlkit.drawn.expressions import candidates, expressions
from vlkit.drawn.graph import Background, Scene, Thing
from vlkit.drawn.make import make_world
from vlkit.drawn.refcoco import LIVING, official_refs, referred, split_of
from vlkit.drawn.refer import both
from vlkit.drawn.world import COUNTS, generator, read_world, sample_scenes
from vlkit.files import sha256_of

COUNT = {"train": 40, "val": 8, "test": 24}


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def row_of_stars(*xs: float) -> Scene:
    things = [Thing("star", "red", "small", "plain", x, 0.5, 0.2) for x in xs]
    return Scene("demo", tuple(things), Background("paper", ""))


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COUNTS, "small", COUNT)
        return make_world(tmp_path_factory.mktemp("demo") / "world", seed=3, size="small", parts=("refcoco",))


@pytest.fixture(scope="module")
def refs(world_folder: Path) -> list[dict]:
    return read_pickle(world_folder / "refcoco" / "refs(unc).p")


# --- Expressions ---


def test_every_expression_fits_exactly_the_thing_it_is_about() -> None:
    checked = Counter()
    for index, scene in enumerate(sample_scenes(5, {"train": 120})["train"]):
        rng = generator(5, "train", index, 9)
        for i in range(len(scene.things)):
            for skill, phrases in candidates(scene, i, rng).items():
                for phrase in phrases:
                    assert resolve(phrase.words, scene) == [i], (phrase.words, i, scene.things)
                    checked[skill] += 1
    assert set(checked) == {"kind", "attribute", "place", "order", "relation", "size"}
    assert min(checked.values()) >= 20, checked


def test_most_expressions_need_more_than_the_kind() -> None:
    needed = Counter()
    for index, scene in enumerate(sample_scenes(6, {"train": 150})["train"]):
        rng = generator(6, "train", index, 9)
        for i, thing in enumerate(scene.things):
            for phrase in expressions(scene, i, rng, 2):
                same_kind = [t for t in scene.things if t.kind == thing.kind]
                named = "thing" not in phrase.head and "object" not in phrase.head
                needed["kind is enough" if named and len(same_kind) == 1 else "more"] += 1
    assert needed["more"] > 1.5 * needed["kind is enough"] > 0


def test_order_is_counted_only_where_gaps_are_clear() -> None:
    rng = np.random.default_rng(0)
    words = {p.words for _ in range(40) for p in candidates(row_of_stars(0.2, 0.5, 0.8), 1, rng).get("order", [])}
    assert "second star from the left" in words
    close = row_of_stars(0.2, 0.5, 0.55)
    assert not any("order" in candidates(close, i, rng) for _ in range(20) for i in (1, 2))


def test_nothing_is_said_of_a_thing_that_cannot_be_told_apart() -> None:
    assert expressions(row_of_stars(0.5, 0.52), 0, np.random.default_rng(0), 2) == []


def test_truth_of_two_words_together() -> None:
    assert both([True, True, None, None, False], [True, None, None, False, None]) == (True, None, None, False, False)


# --- Files ---


def test_refs_have_the_official_layout(world_folder: Path, refs: list[dict]) -> None:
    data = (world_folder / "refcoco" / "refs(unc).p").read_bytes()
    assert data[:2] == b"\x80\x02" and pickle.loads(data) == refs
    instances = json.loads((world_folder / "refcoco" / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    boxes = {annotation["id"]: annotation for annotation in instances["annotations"]}
    assert len(images) == sum(COUNT.values())
    assert [ref["ref_id"] for ref in refs] == list(range(len(refs)))
    assert [i for ref in refs for i in ref["sent_ids"]] == list(range(sum(len(ref["sent_ids"]) for ref in refs)))
    for ref in refs:
        stem, suffix = ref["file_name"].removesuffix(".jpg").rsplit("_", 1)
        assert f"{stem}.jpg" == images[ref["image_id"]]["file_name"] and suffix.isdigit()
        assert boxes[ref["ann_id"]]["image_id"] == ref["image_id"]
        assert boxes[ref["ann_id"]]["category_id"] == ref["category_id"]
        assert [sentence["sent_id"] for sentence in ref["sentences"]] == ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert sentence["tokens"] == sentence["sent"].split() and sentence["sent"] == sentence["sent"].lower()
            assert sentence["raw"].lower().rstrip(".") == sentence["sent"]
    assert max(Counter(ref["image_id"] for ref in refs).values()) > 1


def test_splits_and_who_is_in_them(world_folder: Path, refs: list[dict]) -> None:
    world = read_world(world_folder, seed=3, side=96)
    images = {p.image_id: p for split in world.images.values() for p in split}
    found: dict[str, set[int]] = {}
    for ref in refs:
        image = images[ref["image_id"]]
        assert ref["split"] == split_of(image)
        found.setdefault(ref["split"], set()).add(ref["image_id"])
        number = ref["ann_id"] - annotation_id(image, 0)
        if ref["split"] == "testA":
            assert image.scene.things[number].kind in LIVING
        if ref["split"] == "testB":
            assert not any(thing.kind in LIVING for thing in image.scene.things)
        for sentence in ref["sentences"]:
            assert resolve(sentence["sent"], image.scene) == [number]
    assert set(found) == {"train", "val", "testA", "testB"}
    assert not found["testA"] & found["testB"]
    assert {p.split for p in images.values() if p.image_id in found["testA"] | found["testB"]} == {"test"}


def test_mdetr_files_say_the_same_as_the_refs(world_folder: Path) -> None:
    folder = world_folder / "refcoco"
    official = refcoco.read_refs(folder)
    mdetr = refcoco.read_mdetr(sorted(folder.glob("finetune_*.json")))
    for split in ("train", "val", "testA", "testB"):
        first, second = (
            [(r["image"], r["text"], r["box"], r["ann_id"]) for r in source.splits[split]]
            for source in (official, mdetr)
        )
        assert first == second and first
        for record in mdetr.splits[split]:
            ((begin, end),) = record["tokens_positive"]
            noun = record["text"][begin:end]
            assert noun.strip() == noun and record["text"][end : end + 1] in ("", " ")
    content = json.loads((folder / "finetune_refcoco_train.json").read_text())
    others = [image["caption"][b:e] for image in content["images"] for b, e in image["tokens_negative"]]
    assert others and all(text.startswith("the ") for text in others)


def test_converter_prepares_the_files_without_special_cases(world_folder: Path, tmp_path: Path) -> None:
    prepared = prepare(refcoco.read_refs(world_folder / "refcoco"), tmp_path / "data", world_folder)
    assert prepared.notes == [] and set(prepared.dataset.splits) == {"train", "val", "testA", "testB"}
    report = check_dataset(prepared.dataset, workers=1)
    assert report.problems == [] and report.records > 200


def test_a_part_added_later_is_the_same(world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written from the scenes in memory or from those read back, in one process or another."""
    monkeypatch.setitem(COUNTS, "small", COUNT)
    make_world(tmp_path / "w", seed=3, size="small", parts=())
    assert not (tmp_path / "w" / "refcoco").exists()
    make_world(tmp_path / "w", seed=3, size="small", parts=("refcoco",))
    assert digests(tmp_path / "w") == digests(world_folder)


def test_another_seed_refers_to_other_things(world_folder: Path) -> None:
    images = read_world(world_folder, seed=3, side=96).images["train"]
    first, second = (official_refs(images, [referred(p, seed) for p in images]) for seed in (3, 4))
    assert [ref["sentences"] for ref in first] != [ref["sentences"] for ref in second]
