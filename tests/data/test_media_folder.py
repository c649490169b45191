"""Names in annotations and names on the disk in different forms of Unicode."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vlkit.data.images import read_image
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.media_folder import MediaFolder
from vlkit.data.sources import coco, flickr30k
from vlkit.data.sources import folder as own_folder
from vlkit.data.sources.prepare import prepare

FORMS = [("NFC", "NFD"), ("NFD", "NFC")]
NAME = "Zoë/café Ω.png"


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


@pytest.mark.parametrize(("stated", "stored"), FORMS)
def test_a_file_is_found_in_the_other_form(tmp_path, stated, stored):
    wanted, actual = (unicodedata.normalize(form, NAME) for form in (stated, stored))
    assert wanted != actual
    image(tmp_path / actual)
    files = MediaFolder(tmp_path)
    assert files.find(wanted) == actual and files.find(actual) == actual
    assert files.find("Zoe/cafe.png") is None and files.find(wanted + "x") is None and wanted in files


def test_the_written_form_wins_where_both_are_there(tmp_path):
    both = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    for name in both:
        image(tmp_path / name)
    assert [MediaFolder(tmp_path).find(name) for name in both] == both


@pytest.mark.parametrize(("stated", "stored"), FORMS)
@pytest.mark.parametrize("layout", ["karpathy", "captions", "flat", "token", "own table", "own texts"])
def test_every_reader_of_annotations_finds_it(tmp_path, layout, stated, stored):
    wanted, actual = (unicodedata.normalize(form, NAME) for form in (stated, stored))
    root = tmp_path / "images"
    image(root / actual)
    file = tmp_path / "captions_train2017.json"
    if layout == "karpathy":
        entry = {"filename": wanted, "split": "train", "sentences": [{"raw": "a dog"}]}
        file.write_text(json.dumps({"dataset": "x", "images": [entry]}))
        source = coco.read(file)
    elif layout == "captions":
        content = {
            "images": [{"id": 1, "file_name": wanted}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
        }
        file.write_text(json.dumps(content))
        source = coco.read(file)
    elif layout == "flat":
        (tmp_path / "coco_karpathy_train.json").write_text(json.dumps([{"image": wanted, "caption": "a dog"}]))
        source = coco.read(tmp_path / "coco_karpathy_train.json")
    elif layout == "token":
        (tmp_path / "a.token").write_text(f"{wanted}#0\ta dog\n")
        source = flickr30k.read(tmp_path / "a.token")
    elif layout == "own table":
        (tmp_path / "c.csv").write_text(f"image,caption\n{wanted},a dog\n{actual},a cat\n")
        source = own_folder.read(root, tmp_path / "c.csv", val=0, test=0)
    else:
        (root / wanted).parent.mkdir(exist_ok=True)
        (root / unicodedata.normalize(stored, "Zoë") / unicodedata.normalize(stated, "café Ω.txt")).write_text("a dog")
        source = own_folder.read(root, val=0, test=0)
    dataset = prepare(source, tmp_path / "data", root).dataset
    (record,) = dataset.records("train")
    assert record["image"] == actual and read_image(dataset, record).size == (4, 4)
    if layout == "own table":
        assert record["texts"] == ["a dog", "a cat"]  # one image, not two


@pytest.mark.parametrize(("stated", "stored"), FORMS)
def test_a_prepared_dataset_is_read_where_the_disk_has_the_other_form(tmp_path, stated, stored):
    """Copied from a Mac, or written by hand."""
    wanted, actual = (unicodedata.normalize(form, NAME) for form in (stated, stored))
    image(tmp_path / "images" / actual)
    splits = {"train": [{"id": "1", "image": wanted, "texts": ["a dog"]}]}
    data = write_dataset(
        tmp_path / "data", name="x", task="retrieval", splits=splits, media_root=tmp_path / "images", source=None
    )
    dataset = Dataset.open(data.root)
    assert dataset.path(dataset.records("train")[0]) == tmp_path / "images" / actual
    assert dataset.path("none é.png") == dataset.media_root / "none é.png"


@pytest.mark.parametrize(("stated", "stored"), FORMS)
def test_split_lists_name_images_in_either_form(tmp_path, stated, stored):
    wanted, actual = (unicodedata.normalize(form, "é") for form in (stated, stored))
    (tmp_path / "a.token").write_text(f"{actual}.jpg#0\ta dog\n")
    (tmp_path / "test.txt").write_text(f"{wanted}.jpg\n")
    source = flickr30k.read(tmp_path / "a.token", split_lists=tmp_path)
    assert [record["image"] for record in source.splits["test"]] == [f"{actual}.jpg"]
