"""RefCOCO's official files -> records, and what is said about wrong or hostile ones."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlkit.data.check import check_dataset
from vlkit.data.restricted_pickle import read_pickle
from vlkit.data.sources import refcoco
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError

ROOT = Path(__file__).parents[2]
NAME = "COCO_train2014_000000000123"
BOXES = {5001: [10.0, 10.0, 50.5, 30.25], 5002: [0.0, 0.0, 100.6, 80.0]}


def ref(ref_id: int, ann_id: int, split: str, *sents: str) -> dict[str, Any]:
    ids = [10 * ref_id + k for k in range(len(sents))]
    sentences = [
        {"tokens": s.split(), "raw": f"{s.capitalize()}!", "sent_id": i, "sent": s}
        for i, s in zip(ids, sents, strict=True)
    ]
    name = f"{NAME}_{ref_id}.jpg"
    head = {"sent_ids": ids, "file_name": name, "ann_id": ann_id, "ref_id": ref_id, "image_id": 123, "split": split}
    return {**head, "category_id": 18, "sentences": sentences}


def refs() -> list[dict[str, Any]]:
    return [ref(0, 5001, "testA", "brown dog", "dog on left"), ref(1, 5002, "train", "big dog")]


def instances() -> dict[str, Any]:
    return {
        "images": [{"file_name": f"{NAME}.jpg", "height": 80, "width": 100, "id": 123}],
        "annotations": [{"id": i, "image_id": 123, "category_id": 18, "bbox": box} for i, box in BOXES.items()],
        "categories": [{"supercategory": "animal", "id": 18, "name": "dog"}],
    }


def mdetr() -> dict[str, Any]:
    image = {"file_name": f"{NAME}.jpg", "height": 80, "width": 100, "original_id": 123, "dataset_name": "refcoco"}
    box = {"area": 1525.1, "iscrowd": 0, "category_id": 18, "bbox": BOXES[5001], "original_id": 5001}
    return {
        "images": [{**image, "id": 7, "caption": "brown dog on left", "tokens_negative": [[13, 17]]}],
        "annotations": [{**box, "image_id": 7, "id": 7, "tokens_positive": [[0, 5], [6, 9]]}],
    }


def write(folder: Path, content: Any = None, boxes: Any = None, name: str = "refs(unc).p") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = refs() if content is None else content
    data = json.dumps(content).encode() if name.endswith(".json") else pickle.dumps(content, protocol=2)
    (folder / name).write_bytes(data)
    (folder / "instances.json").write_text(json.dumps(boxes or instances()))
    return folder / name


def image_folder(folder: Path, name: str = f"train2014/{NAME}.jpg") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 80)).save(folder / name)
    return folder


# --- Records ---


@pytest.mark.parametrize("name", ["refs(unc).p", "refs(unc).json", "mine.p"])
def test_a_record_a_sentence_with_the_box_as_corners(tmp_path: Path, name: str) -> None:
    source = refcoco.read_refs(write(tmp_path / "refcoco+", name=name))
    assert (source.name, source.task) == ("refcoco+", "grounding")
    assert source.counts == {"train": (1, 1), "testA": (1, 2)} and list(source.splits) == ["train", "testA"]
    common = {"image": f"train2014/{NAME}.jpg", "width": 100, "height": 80, "box": [10.0, 10.0, 60.5, 40.25]}
    common |= {"ref_id": 0, "ann_id": 5001, "category": "dog"}
    assert source.splits["testA"] == [
        {"id": "ref/0", "text": "brown dog", **common},
        {"id": "ref/1", "text": "dog on left", **common},
    ]


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    """Protocol 0 and byte strings, as Python 2 wrote them."""
    data = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9 \\xff'\np3\nsS'n'\np4\nI3\nsS'x'\np5\nF1.5\nsa."
    (tmp_path / "old.p").write_bytes(data)
    assert read_pickle(tmp_path / "old.p") == [{"sent": "café �", "n": 3, "x": 1.5}]


def test_ids_written_as_texts_are_taken(tmp_path: Path) -> None:
    content, boxes = refs(), instances()
    for entry in content:
        entry.update({field: str(entry[field]) for field in ("image_id", "ann_id", "ref_id")})
    for entry in (*boxes["images"], *boxes["annotations"]):
        entry["id"] = str(entry["id"])
    assert len(refcoco.read_refs(write(tmp_path, content, boxes)).splits["testA"]) == 2


def test_blank_sentences_are_left_out_and_blanks_tidied(tmp_path: Path) -> None:
    source = refcoco.read_refs(write(tmp_path, [ref(0, 5001, "train", "  ", " brown \t dog ")]))
    assert [record["text"] for record in source.splits["train"]] == ["brown dog"] and source.blank_texts == 1


def test_mdetr_files(tmp_path: Path) -> None:
    path = tmp_path / "finetune_refcocog_val.json"
    path.write_text(json.dumps(mdetr()))
    source = refcoco.read_mdetr([path])
    assert source.name == "refcocog"
    assert source.splits == {
        "val": [
            {
                "id": "ref/7",
                "image": f"train2014/{NAME}.jpg",
                "width": 100,
                "height": 80,
                "text": "brown dog on left",
                "box": [10.0, 10.0, 60.5, 40.25],
                "ann_id": 5001,
                "tokens_positive": [[0, 5], [6, 9]],
            }
        ]
    }


@pytest.mark.parametrize(
    "place", [f"train2014/{NAME}.jpg", f"{NAME}.jpg", "train2017/000000000123.jpg", "000000000123.jpg"]
)
def test_images_are_found_where_the_releases_have_them(tmp_path: Path, place: str) -> None:
    source = refcoco.read_refs(write(tmp_path / "refs"))
    dataset = prepare(source, tmp_path / "data", image_folder(tmp_path / "images", place)).dataset
    assert dataset.records("train")[0]["image"] == place
    assert check_dataset(dataset, workers=1).problems == []


def test_folder_in_the_refs_file_name_is_used(tmp_path: Path) -> None:
    """A suffix follows the image's own name, which may hold other numbers."""
    content, boxes = refs()[:1], instances()
    content[0]["file_name"] = "mine/shot_12_4.jpg"
    boxes["images"][0]["file_name"] = "shot_12.jpg"
    assert refcoco.read_refs(write(tmp_path, content, boxes)).splits["testA"][0]["image"] == "mine/shot_12.jpg"


def test_split_by_chooses_among_the_files_of_a_folder(tmp_path: Path) -> None:
    umd = write(tmp_path / "refcocog", refs()[1:], name="refs(umd).p")
    write(tmp_path / "refcocog", name="refs(google).p")
    assert set(refcoco.read_refs(umd.parent, split_by="umd").splits) == {"train"}
    with pytest.raises(UserError, match=r"holds refs\(google\).p, refs\(umd\).p; .*--split_by"):
        refcoco.read_refs(umd.parent)
    with pytest.raises(UserError, match="split by umd, not by unc"):
        refcoco.read_refs(umd, split_by="unc")
    with pytest.raises(UserError, match=r"holds no refs\(\*\).p"):
        refcoco.read_refs(image_folder(tmp_path / "empty"))


# --- Wrong input ---


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r, i: r[0].update(split="testC"), r'\[0\]: field "split" is "testC"; known are train'),
        (lambda r, i: r[0].pop("image_id"), r'\[0\]: field "image_id" is missing'),
        (lambda r, i: r[0].update(image_id=9), r'\[0\]: field "image_id": 9 is not in .*instances.json'),
        (lambda r, i: r[1].update(ann_id=9), r'\[1\]: field "ann_id": 9 is not in .*instances.json'),
        (lambda r, i: r[0].update(sentences="dog"), r'\[0\]: field "sentences" is not of type list'),
        (lambda r, i: r[0]["sentences"][1].pop("sent_id"), r'\[0\].sentences\[1\]: field "sent_id" is missing'),
        (lambda r, i: r.append(3), r"\[2\]: not a JSON object"),
        (lambda r, i: r.clear(), "not a list of references"),
        (lambda r, i: i["annotations"][0].update(bbox=[60, 10, "50"]), r'annotations\[0\]: field "bbox".*four numbers'),
        (lambda r, i: i["annotations"][0].update(image_id=9), r"5001 is a box of another image than 123"),
        (lambda r, i: i["images"][0].pop("width"), r'images\[0\]: field "width" is missing'),
        (lambda r, i: i.pop("annotations"), 'instances.json: field "annotations" is missing'),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, spoil: Callable[..., Any], message: str) -> None:
    content, boxes = refs(), instances()
    spoil(content, boxes)
    with pytest.raises(UserError, match=message) as caught:
        refcoco.read_refs(write(tmp_path, content, boxes))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([60, 10, 41.5, 30], "outside the image of 100 x 80"),
        ([-1.5, 10, 20, 30], "outside the image of 100 x 80"),
        ([60, 10, -50, 30], "empty or inverted"),
        ([0, 0, 0, 5], "empty or inverted"),
    ],
)
@pytest.mark.parametrize("form", ["refs", "mdetr"])
def test_a_wrong_box_is_left_out_by_partial_and_stops_without(
    tmp_path: Path, form: str, bbox: list[float], problem: str
) -> None:
    images = image_folder(tmp_path / "images")
    if form == "refs":
        boxes = instances()
        boxes["annotations"][0]["bbox"] = bbox
        source = refcoco.read_refs(write(tmp_path, None, boxes))
        good = ["ref/10"]
    else:
        content = mdetr()
        content["images"].append({**content["images"][0], "id": 8})
        content["annotations"] += [{**content["annotations"][0], "image_id": 8, "id": 8}]
        content["annotations"][0] = {**content["annotations"][0], "bbox": bbox}
        (tmp_path / "finetune_refcoco_train.json").write_text(json.dumps(content))
        source = refcoco.read_mdetr([tmp_path / "finetune_refcoco_train.json"])
        good = ["ref/8"]
    with pytest.raises(UserError, match=rf"annotations\[0\]: bbox .*{problem}.*--partial"):
        prepare(source, tmp_path / "data", images)
    prepared = prepare(source, tmp_path / "data", images, partial=True)
    assert [record["id"] for record in prepared.dataset.records("train")] == good
    assert len((tmp_path / "data" / "wrong.txt").read_text().splitlines()) == 1  # once for two sentences
    assert any("1 annotation" in note and "wrong.txt" in note for note in prepared.notes)


def test_a_box_within_a_pixel_of_the_edge_is_kept_as_annotated(tmp_path: Path) -> None:
    boxes = instances()
    boxes["annotations"][0]["bbox"] = [60, 10, 40.9, 30]
    source = refcoco.read_refs(write(tmp_path, None, boxes))
    assert source.wrong == [] and source.splits["testA"][0]["box"] == [60, 10, 100.9, 40]


def test_an_annotation_with_only_a_mask_gets_the_box_around_it(tmp_path: Path) -> None:
    boxes = instances()
    del boxes["annotations"][0]["bbox"]
    boxes["annotations"][0]["segmentation"] = [[60, 10, 90, 10, 90, 40, 60, 40]]
    source = refcoco.read_refs(write(tmp_path, None, boxes))
    assert source.wrong == [] and source.splits["testA"][0]["box"] == [60, 10, 90, 40]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["annotations"].clear(), r"images\[0\]: 0 boxes for one expression"),
        (lambda c: c["annotations"].append(c["annotations"][0]), r"images\[0\]: 2 boxes for one expression"),
        (lambda c: c["images"].clear(), r'annotations\[0\]: field "image_id": no such image'),
        (lambda c: c["images"][0].pop("caption"), r'images\[0\]: field "caption" is missing'),
    ],
)
def test_wrong_mdetr_records_are_named(tmp_path: Path, spoil: Callable[..., Any], message: str) -> None:
    content = mdetr()
    spoil(content)
    path = tmp_path / "finetune_refcoco_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        refcoco.read_mdetr([path])
    assert str(path) in str(caught.value)


def test_mdetr_files_must_be_of_one_dataset_and_say_their_split(tmp_path: Path) -> None:
    names = ("finetune_refcoco_val.json", "finetune_refcoco+_train.json", "other_val.json", "finetune_refcoco.json")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_text(json.dumps(mdetr()))
    with pytest.raises(UserError, match="different datasets"):
        refcoco.read_mdetr(paths[:2])
    with pytest.raises(UserError, match='split "val" comes from'):
        refcoco.read_mdetr([paths[0], paths[2]])
    with pytest.raises(UserError, match="its name contains no split"):
        refcoco.read_mdetr([paths[3]])


# --- Hostile pickles ---


class Touch:
    """Pickles as a call that would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "touched"
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([refs()[0], Touch(target)], protocol=protocol))
    with pytest.raises(UserError, match=rf"refs\(unc\).p: asks for {os.system.__module__}.system") as caught:
        refcoco.read_refs(tmp_path / "refs(unc).p", split_by="unc")
    assert not target.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(datetime.date(2024, 1, 1)), "datetime.date"),
        (pickle.dumps(print), "builtins.print"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"Pid\n.", "persistent object 'id'"),
        (b"\x80\x02\x82\x01.", "not a readable pickle"),
        (b"", "not a readable pickle"),
        (b"\x80\x02]q\x00(X\x05\x00", "not a readable pickle"),
        (b"{}", "not a readable pickle"),
        (b"\x80\xff.", "not a readable pickle"),
        (b"\x80\x02}]K\x01s.", "not a readable pickle"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.p").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_pickle(tmp_path / "x.p")
    assert str(tmp_path / "x.p") in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refs\(unc\).p: no such file"):
        refcoco.read_refs(tmp_path / "refs(unc).p")
    path = write(tmp_path)
    (tmp_path / "instances.json").unlink()
    with pytest.raises(UserError, match=r"instances\.json: no such file"):
        refcoco.read_refs(path)
    with pytest.raises(UserError, match="cannot read"):
        read_pickle(tmp_path)


# --- Script ---


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "data_prep/refcoco.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_script_writes_the_dataset(tmp_path: Path) -> None:
    path, images = write(tmp_path / "refcoco"), image_folder(tmp_path / "images")
    flags = ["--refs", path, "--instances", path.parent / "instances.json", "--images", images, "--split_by", "unc"]
    done = run_script(*flags, "--output", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "testA" in done.stdout and (tmp_path / "data" / "testA.jsonl").is_file()


def test_script_wants_one_kind_of_input_and_refuses_hostile_ones(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images")
    done = run_script("--images", images, "--output", tmp_path / "data")
    assert done.returncode == 2 and "--refs" in done.stderr and "--mdetr" in done.stderr
    path = write(tmp_path, [Touch(tmp_path / "touched")])
    done = run_script("--refs", path, "--images", images, "--output", tmp_path / "data")
    assert done.returncode == 2 and "system" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "touched").exists() and not (tmp_path / "data").exists()
