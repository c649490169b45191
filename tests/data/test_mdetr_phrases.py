"""MDETR's files of Flickr30k Entities -> the records that the release gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlkit.data.sources import flickr30k_entities, mdetr_phrases
from vlkit.errors import UserError

ROOT = Path(__file__).parents[2]
CAPTION = "A man with two dogs holds a box ."
MAN, DOGS, BOX = [[0, 5]], [[11, 19]], [[26, 31]]
NAME = "final_flickr_separateGT_train.json"


def release(folder: Path) -> Path:
    """The same sentence in the official form; entity 12 has two objects."""
    for sub in ("Sentences", "Annotations"):
        (folder / sub).mkdir(parents=True)
    (folder / "train.txt").write_text("1000\n")
    line = "[/EN#11/people A man] with [/EN#12/animals two dogs] holds [/EN#13/other a box] .\n"
    (folder / "Sentences" / "1000.txt").write_text(line)
    boxes = {11: [(20, 30, 200, 370)], 12: [(5, 200, 60, 260), (90, 210, 160, 250)]}
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{r}</xmax><ymax>{b}</ymax></bndbox>"
        "</object>"
        for name, corners in boxes.items()
        for x, y, r, b in corners
    )
    size = "<size><width>500</width><height>375</height></size>"
    (folder / "Annotations" / "1000.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return folder


def content(evaluated: bool = True) -> dict[str, Any]:
    sentence = {
        "file_name": "1000.jpg",
        "height": 375,
        "width": 500,
        "id": 7,
        "original_img_id": 1000,
        "sentence_id": 0,
        "caption": CAPTION,
        "dataset_name": "flickr",
        "tokens_negative": [[0, len(CAPTION)]],
    }
    boxes = [([20, 30, 180, 340], MAN), ([5, 200, 55, 60], DOGS), ([90, 210, 70, 40], DOGS)]
    return {
        "images": [{**sentence, "tokens_positive_eval": [MAN, DOGS, BOX]} if evaluated else sentence],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 1.0, "bbox": b, "tokens_positive": spans}
            for i, (b, spans) in enumerate(boxes)
        ],
    }


def put(folder: Path, value: Any, name: str = NAME) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder / name


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_same_records_as_from_the_release(tmp_path: Path, evaluated: bool) -> None:
    wanted = flickr30k_entities.read(release(tmp_path / "release")).splits["train"]
    found = mdetr_phrases.read([put(tmp_path, content(evaluated))])
    told = [{k: v for k, v in record.items() if k not in ("categories", "entity")} for record in wanted]
    assert found.splits == {"train": told}
    assert [record["text"] for record in told] == ["A man", "two dogs"] and told[1]["box"] == [5, 200, 160, 260]
    assert found.counts == {"train": (1, 2)} and not found.wrong


def test_a_box_that_two_phrases_name_belongs_to_both(tmp_path: Path) -> None:
    value = content()
    value["annotations"][0]["tokens_positive"] = [*MAN, *BOX]
    records = mdetr_phrases.read([put(tmp_path, value)]).splits["train"]
    assert [record["text"] for record in records] == ["A man", "two dogs", "a box"]
    assert records[2]["boxes"] == records[0]["boxes"] == [[20, 30, 200, 370]]


def test_a_phrase_of_several_spans(tmp_path: Path) -> None:
    value = content()
    value["images"][0]["tokens_positive_eval"] = [[*MAN, [20, 25]], DOGS]
    records = mdetr_phrases.read([put(tmp_path, value)]).splits["train"]
    assert records[0]["text"] == "A man holds"


def test_a_box_outside_its_image_is_listed(tmp_path: Path) -> None:
    value = content()
    value["annotations"][1]["bbox"] = [480, 200, 55, 60]
    source = mdetr_phrases.read([put(tmp_path, value)])
    assert len(source.wrong) == 1 and "annotations[1]: bbox [480, 200, 55, 60]" in source.wrong[0]
    assert [record["text"] for record in source.splits["train"]] == ["A man"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["annotations"][0].update(tokens_positive=[[6, 10]]), r"annotations\[0\].*is no phrase of"),
        (lambda c: c["annotations"][0].update(tokens_positive=[[0, 99]]), r"\[0, 99\] is no span of 'A man"),
        (lambda c: c["annotations"][0].update(tokens_positive=[[5, 5]]), r"\[5, 5\] is no span"),
        (lambda c: c["annotations"][0].update(tokens_positive=[]), '"tokens_positive" is empty'),
        (lambda c: c["annotations"][0].update(image_id=8), r'annotations\[0\]: field "image_id": no such image'),
        (lambda c: c["images"][0].update(tokens_positive_eval=[[[0, "5"]]]), "phrase 0: .*is no span"),
        (lambda c: c["images"][0].pop("sentence_id"), r'images\[0\]: field "sentence_id" is missing'),
        (lambda c: c.update(annotations=[]), "no phrase has a box"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, spoil: Callable[..., Any], message: str) -> None:
    value = content()
    spoil(value)
    with pytest.raises(UserError, match=message):
        mdetr_phrases.read([put(tmp_path, value)])


def test_the_name_gives_the_split(tmp_path: Path) -> None:
    files = [put(tmp_path, content(), f"final_flickr_{kind}_val.json") for kind in ("separateGT", "mergedGT")]
    with pytest.raises(UserError, match=r'split "val" comes from final_flickr_separateGT_val\.json too'):
        mdetr_phrases.read(files)
    with pytest.raises(UserError, match="contains no split"):
        mdetr_phrases.read([put(tmp_path, content(), "flickr.json")])


def test_the_script_takes_one_form(tmp_path: Path) -> None:
    Image.new("RGB", (500, 375)).save(tmp_path / "1000.jpg")
    put(tmp_path, content(), "final_flickr_separateGT_val.json")
    put(tmp_path, content())

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        given = ("--images", str(tmp_path), "--output", str(tmp_path / "out"), *words)
        script = str(ROOT / "data_prep" / "flickr30k_entities.py")
        return subprocess.run([sys.executable, script, *given], capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode == 2 and "--annotations" in refused.stderr and "--mdetr" in refused.stderr
    files = [str(tmp_path / name) for name in (NAME, "final_flickr_separateGT_val.json")]
    done = run("--mdetr", *files)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "val.jsonl").read_text().splitlines()) == 2
