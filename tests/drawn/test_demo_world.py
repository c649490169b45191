"""The demo world: its scenes, images, official files and how it gets onto the disk."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vlkit.drawn import kind_images, make
from vlkit.drawn.captions import captions
from vlkit.drawn.draw import boxes, draw, render
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.preview import contact_sheet
from vlkit.drawn.scenes import Scene, Thing, sample_scene, scene_from_json
from vlkit.drawn.words import COLOURS
from vlkit.drawn.world import COUNTS, draw_world, generator, sample_scenes
from vlkit.errors import UserError
from vlkit.files import sha256_of

ROOT = Path(__file__).parents[2]
TINY = {"train": 12, "val": 4, "test": 6}
DOMAINS = ("pretrain", "demo")


def scenes_of(domain: str, count: int, seed: int = 5) -> list[tuple[Scene, np.random.Generator]]:
    found = []
    for index in range(count):
        rng = generator(seed, "train", index)
        found.append((sample_scene(rng, domain), rng))
    return found


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module", autouse=True)
def few_kinds() -> Iterator[None]:
    """One image of each kind: the full number takes seconds for every world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind_images, "PER_CLASS", {"train": 1, "val": 1, "test": 1})
        yield


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COUNTS, "small", TINY)
        make.make_world(folder, seed=3, size="small")
    return folder


# --- Scenes ---


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_seed_gives_the_same_scene_image_and_captions(domain: str) -> None:
    first, second = ([(s, draw(s).tobytes(), captions(s, r)) for s, r in scenes_of(domain, 20)] for _ in range(2))
    other = [(s, draw(s).tobytes(), captions(s, r)) for s, r in scenes_of(domain, 20, seed=6)]
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("domain", DOMAINS)
def test_things_lie_inside_the_image_and_are_large_enough(domain: str) -> None:
    for scene, _ in scenes_of(domain, 200):
        for thing, seen in zip(scene.things, boxes(scene, 96), strict=True):
            assert seen is not None
            left, top, right, bottom = seen
            assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
            assert max(right - left, bottom - top) >= 14, thing


def test_every_kind_size_pattern_and_background_occurs() -> None:
    scenes = [scene for scene, _ in scenes_of("demo", 800)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {t.kind for t in things} == set(KINDS)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.size for t in things} == {"small", "medium", "large"}
    assert {t.pattern for t in things} == {"plain", "striped", "dotted", "checkered"}
    assert len({scene.background.style for scene in scenes}) == 7
    assert {len(scene.things) for scene in scenes} == {2, 3, 4, 5}
    assert any(scene.on for scene in scenes)


def test_key_ignores_small_shifts_and_order_but_not_content() -> None:
    scene = scenes_of("demo", 1)[0][0]
    first, *rest = scene.things
    shifted = dataclasses.replace(first, x=first.x + 1e-4, seed=first.seed + 1)
    assert dataclasses.replace(scene, things=(*rest, shifted)).key() == scene.key()
    recoloured = dataclasses.replace(first, colour="red" if first.colour != "red" else "blue")
    assert dataclasses.replace(scene, things=(recoloured, *rest)).key() != scene.key()


def test_scene_survives_json() -> None:
    for domain in DOMAINS:
        for scene, _ in scenes_of(domain, 20):
            assert scene_from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_no_scene_is_in_two_splits_or_twice_in_one() -> None:
    counts = {"train": 1500, "val": 100, "test": 300}
    scenes = sample_scenes(1, counts)
    keys = [scene.key() for split in counts for scene in scenes[split]]
    assert len(keys) == 1900 == len(set(keys))


def test_held_out_scenes_do_not_depend_on_the_training_size() -> None:
    assert sample_scenes(1, {"train": 5, "test": 20})["test"] == sample_scenes(1, {"train": 50, "test": 20})["test"]


def test_a_repeated_scene_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = [scene for scene, _ in scenes_of("demo", 4)]
    offered = iter([fixed[0], fixed[0], fixed[1], fixed[1], fixed[0], fixed[2], fixed[3]])
    monkeypatch.setattr("vlkit.drawn.world.sample_scene", lambda rng, domain: next(offered))
    scenes = sample_scenes(0, {"train": 2, "test": 2})
    assert scenes == {"test": [fixed[0], fixed[1]], "train": [fixed[2], fixed[3]]}


def test_seeds_differ_in_scenes_and_agree_in_statistics() -> None:
    def statistics(seed: int) -> tuple[set[str], np.ndarray]:
        scenes = [scene for scene, _ in scenes_of("demo", 1500, seed)]
        things = [thing for scene in scenes for thing in scene.things]
        counts = Counter(thing.kind for thing in things) + Counter(thing.colour for thing in things)
        shares = [counts[name] / len(things) for name in (*KINDS, *COLOURS)]
        return {scene.key() for scene in scenes}, np.array([*shares, len(things) / len(scenes) / 10])

    keys, shares = statistics(1)
    other_keys, other_shares = statistics(2)
    assert not keys & other_keys
    assert shares.min() > 0
    np.testing.assert_allclose(shares, other_shares, atol=0.02)


# --- Drawing ---


def test_boxes_are_those_of_the_drawn_pixels() -> None:
    """Taking the front thing away changes the pixels of its box and no others."""
    compared = 0
    for scene, _ in scenes_of("demo", 60):
        scene = dataclasses.replace(scene, shadow=False)
        without = dataclasses.replace(scene, things=scene.things[:-1], on=())
        changed = np.asarray(draw(scene), int) - np.asarray(draw(without), int)
        rows, columns = np.nonzero(np.abs(changed).sum(axis=2) > 0)
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(boxes(scene)[-1], expected, atol=1.0)
        compared += 1
    assert compared == 60


def test_boxes_follow_the_size_of_the_image() -> None:
    scene = scenes_of("pretrain", 1)[0][0]
    for small, large in zip(boxes(scene, 96), boxes(scene, 192), strict=True):
        np.testing.assert_allclose(np.array(small) * 2, large, atol=2.0)
    assert draw(scene, 96).size == (96, 96) and draw(scene, 192).size == (192, 192)


def test_a_hidden_thing_has_no_box() -> None:
    scene = scenes_of("pretrain", 1)[0][0]
    back = Thing("circle", "red", "small", "plain", 0.5, 0.5, 0.2)
    front = Thing("square", "blue", "large", "plain", 0.5, 0.5, 0.42)
    seen = boxes(dataclasses.replace(scene, things=(back, front), on=()))
    assert seen[0] is None and seen[1] is not None


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_fills_its_place_and_can_be_turned_and_cut_off(kind: str) -> None:
    scene = scenes_of("pretrain", 1)[0][0]
    for pattern in ("plain", "striped", "dotted", "checkered"):
        whole = Thing(kind, "red", "large", pattern, 0.5, 0.5, 0.42)
        alone = dataclasses.replace(scene, things=(whole,), on=())
        left, top, right, bottom = boxes(alone)[0]
        assert 0.75 * 40 <= max(right - left, bottom - top) <= 1.15 * 40.4
        turned = dataclasses.replace(alone, things=(dataclasses.replace(whole, angle=90.0, x=0.02),))
        left, top, right, bottom = boxes(turned)[0]
        assert left == 0 and right < 30
    assert draw(alone).tobytes() != draw(dataclasses.replace(alone, things=())).tobytes()


def test_kinds_look_different() -> None:
    """At 96 pixels no two kinds share most of their form, so images can be told apart by it."""
    base = scenes_of("pretrain", 1)[0][0]
    forms = {}
    for kind in KINDS:
        thing = Thing(kind, "red", "medium", "plain", 0.5, 0.5, 0.29)
        forms[kind] = np.asarray(draw(dataclasses.replace(base, things=(thing,), on=())), float)[30:66, 30:66]
    names = list(forms)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(forms[first] - forms[second]).mean() > 4, (first, second)


# --- Files ---


def test_same_seed_writes_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    counts = {"train": 40, "val": 3, "test": 5}
    worlds = [draw_world(3, counts, tmp_path / str(n), workers=n) for n in (0, 2)]
    assert worlds[0].images == worlds[1].images
    first, second = digests(tmp_path / "0"), digests(tmp_path / "2")
    assert first == second and len(first) == 48
    draw_world(4, counts, tmp_path / "other")
    assert not set(first.values()) & set(digests(tmp_path / "other").values())


@pytest.mark.slow
def test_world_is_written_the_same_twice(world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTS, "small", TINY)
    make.make_world(tmp_path / "again", seed=3, size="small")
    assert digests(tmp_path / "again") == digests(world_folder)


def test_pycocotools_loads_instances_that_match_the_images(world_folder: Path) -> None:
    total = 0
    for split, count in TINY.items():
        coco = COCO(str(world_folder / "annotations" / f"instances_{split}2024.json"))
        assert len(coco.imgs) == count
        scenes = [json.loads(line) for line in (world_folder / f"scenes_{split}.jsonl").read_text().splitlines()]
        for record in scenes:
            image = coco.imgs[record["image_id"]]
            assert f"{split}2024/{image['file_name']}" == record["file_name"]
            opened = Image.open(world_folder / record["file_name"])
            assert opened.size == (image["width"], image["height"]) == (96, 96) and opened.mode == "RGB"
            scene = scene_from_json(record["scene"])
            _, ids = render(scene)
            annotations = sorted(coco.imgToAnns[record["image_id"]], key=lambda a: a["id"])
            assert len(annotations) == len(scene.things)
            for number, (annotation, thing) in enumerate(zip(annotations, scene.things, strict=True)):
                x, y, width, height = annotation["bbox"]
                assert [x, y, x + width, y + height] == record["boxes"][number]
                assert min(x, y) >= 0 and max(x + width, y + height) <= 96
                assert coco.cats[annotation["category_id"]]["name"] == thing.kind
                seen = ids == number + 1
                assert annotation["area"] == seen.sum() / 4 and annotation["iscrowd"] == 0
                mask = coco.annToMask(annotation)
                shown = np.asarray(Image.fromarray(seen).resize((96, 96), Image.Resampling.NEAREST))
                assert (mask.astype(bool) & shown).sum() / (mask.astype(bool) | shown).sum() > 0.5
                total += 1
    assert total >= 2 * sum(TINY.values())


def test_captions_file_loads_and_agrees_with_karpathy(world_folder: Path) -> None:
    karpathy = json.loads((world_folder / "dataset_coco.json").read_text())
    assert karpathy["dataset"] == "coco"
    images = karpathy["images"]
    assert Counter(image["split"] for image in images) == TINY
    assert [image["imgid"] for image in images] == list(range(22))
    sentence_ids = [sentence["sentid"] for image in images for sentence in image["sentences"]]
    assert len(sentence_ids) == len(set(sentence_ids)) == 5 * 22
    for image in images:
        coco = COCO(str(world_folder / "annotations" / f"captions_{image['split']}2024.json"))
        assert (world_folder / image["filepath"] / image["filename"]).is_file()
        assert coco.imgs[image["cocoid"]]["file_name"] == image["filename"]
        official = {a["id"]: a["caption"] for a in coco.imgToAnns[image["cocoid"]]}
        assert official == {s["sentid"]: s["raw"] for s in image["sentences"]}
        assert image["sentids"] == [s["sentid"] for s in image["sentences"]]
        for sentence in image["sentences"]:
            assert sentence["imgid"] == image["imgid"]
            assert " ".join(sentence["tokens"]) == re.sub(r"[,:]", "", sentence["raw"])


# --- Whole or not at all ---


def test_a_run_that_fails_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COUNTS, "small", TINY)

    def fail(world: object, folder: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(make, "WRITERS", (*make.WRITERS, fail))
        make.make_world(tmp_path / "w", size="small")
    assert list(tmp_path.iterdir()) == []
    make.make_world(tmp_path / "w", size="small")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_what_a_killed_run_left_is_cleared(world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTS, "small", TINY)
    stale = tmp_path / ".w.part"
    (stale / "train2024").mkdir(parents=True)
    (stale / "train2024" / "half.jpg").write_bytes(b"half")
    (stale / "world.json").write_text("{}")
    make.make_world(tmp_path / "w", seed=3, size="small")
    assert digests(tmp_path / "w") == digests(world_folder) and not stale.exists()


def test_a_killed_process_leaves_no_world(tmp_path: Path) -> None:
    """The process dies without a chance to tidy up, in the middle of writing."""
    code = (
        "import os, sys\n"
        "from vlkit.drawn import make, world\n"
        "world.COUNTS['small'] = {'train': 3, 'val': 1, 'test': 1}\n"
        "make.WRITERS = (make.write_scenes, lambda w, f: os._exit(9))\n"
        "make.make_world(sys.argv[1], size='small')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "w")], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".w.part"]


def test_a_complete_world_is_left_alone_and_another_is_refused(
    world_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COUNTS, "small", TINY)
    before = digests(world_folder)
    monkeypatch.setattr(make, "draw_world", None)
    make.make_world(world_folder, seed=3, size="small")
    with pytest.raises(UserError, match="seed 3"):
        make.make_world(world_folder, seed=4, size="small")
    assert digests(world_folder) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a demo world"):
        make.make_world(tmp_path, size="small")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(("setting", "message"), [({"seed": -1}, "seed -1"), ({"side": 8}, "side 8")])
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make.make_world(tmp_path / "w", **setting)
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_shows_both_domains() -> None:
    sheet = contact_sheet(0, each=6)
    assert sheet.tobytes() == contact_sheet(0, each=6).tobytes() != contact_sheet(1, each=6).tobytes()
    pixels = np.asarray(sheet)
    assert len(np.unique(pixels[: sheet.height // 2].reshape(-1, 3), axis=0)) > 50
    assert len(np.unique(pixels[sheet.height // 2 :].reshape(-1, 3), axis=0)) > 500


@pytest.mark.slow
def test_command_line_writes_world_and_contact_sheet(tmp_path: Path) -> None:
    command = [sys.executable, "data_prep/demo.py", "--output", tmp_path / "w", "--size", "small", "--workers", "0"]
    done = subprocess.run(
        [*command, "--seed", "7", "--preview", tmp_path / "sheet.png"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "train: 400" in done.stdout + done.stderr
    assert json.loads((tmp_path / "w" / "world.json").read_text())["seed"] == 7
    assert Image.open(tmp_path / "sheet.png").width > 1000
    refused = subprocess.run([*command, "--seed", "-7"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "seed -7" in refused.stderr and "Traceback" not in refused.stderr
