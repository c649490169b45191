"""Images with classes, from folders, tables, split files and list files to prepared datasets."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from helpers.scripts import call, refuse
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.sources.image_folder import split_classes
from vlkit.data.sources.labelled import in_order
from vlkit.errors import UserError

SCRIPT = "data_prep/image_folder.py"


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / name)
    return root


def prepared(tmp_path: Path, folder: Path, *words: object) -> Dataset:
    call(SCRIPT, "--folder", folder, "--output", tmp_path / "out", *words)
    return Dataset.open(tmp_path / "out", "classification")


def labels(dataset: Dataset, split: str) -> list[tuple[str, str]]:
    return [(record["image"], record["label"]) for record in dataset.records(split)]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path, capsys):
    folder = images(tmp_path / "pets", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)), "one/deep/er.png")
    images(folder, "loose.png")
    (folder / "empty").mkdir()
    dataset = prepared(tmp_path, folder)
    assert dataset.extra["classes"] == ["cat", "dog", "one"] and dataset.name == "pets"
    counts = {split: len(dataset.records(split)) for split in dataset.splits}
    assert counts == {"train": 15, "val": 2, "test": 4}
    assert ("one/deep/er.png", "one") in labels(dataset, "train")
    said = capsys.readouterr().out
    assert "images in no class folder, left out (1): loose.png" in said
    assert "folders without images, which are no classes: empty" in said
    assert "classes with a single training image: one" in said


def test_folders_of_splits(tmp_path, capsys):
    folder = images(tmp_path / "f", "train/cat/1.png", "train/dog/1.png", "dev/cat/2.png", "Test/dog/1.png")
    dataset = prepared(tmp_path, folder)
    assert labels(dataset, "test") == [("Test/dog/1.png", "dog")] and labels(dataset, "val") == [
        ("dev/cat/2.png", "cat")
    ]
    images(folder, "test/bird/1.png")
    prepared(tmp_path, folder)
    assert "classes without a training image: bird" in capsys.readouterr().out


def test_folders_named_by_codes(tmp_path):
    folder = images(tmp_path / "f", "train/n2/1.png", "train/n1/1.png", "val/n1/2.png")
    (tmp_path / "names.txt").write_text("n1 great white shark\nn2 tench\nn3 hen\n")
    dataset = prepared(tmp_path, folder, "--classes", tmp_path / "names.txt")
    assert dataset.extra["classes"] == ["great white shark", "tench", "hen"]
    assert labels(dataset, "val") == [("val/n1/2.png", "great white shark")]
    (tmp_path / "names.txt").write_text("n1 crane\nn2 crane\n")
    words = ("--folder", folder, "--output", tmp_path / "o", "--classes", tmp_path / "names.txt")
    assert '"crane" is the class of n1 and of n2' in refuse(SCRIPT, *words)
    (tmp_path / "names.txt").write_text("n1\n")
    assert "classes n2 are not in --classes" in refuse(SCRIPT, *words)


def test_images_without_class_folders_are_refused(tmp_path):
    folder = images(tmp_path / "f", "1.png")
    assert "images lie in no class folder (1.png)" in refuse(SCRIPT, "--folder", folder, "--output", tmp_path / "o")


def test_shares_keep_an_image_of_each_class_to_train_on():
    label_of = {f"{c}{i}": c for c, count in (("a", 1), ("b", 2), ("c", 100)) for i in range(count)}
    found = split_classes(label_of, val=0.4, test=0.5, seed=0)
    assert found["a0"] == "train" and sorted(found[f"b{i}"] for i in range(2)) == ["test", "train"]
    assert [list(found.values()).count(split) for split in ("test", "val")] == [51, 40]
    assert found == split_classes(dict(reversed(label_of.items())), val=0.4, test=0.5, seed=0)
    assert found != split_classes(label_of, val=0.4, test=0.5, seed=1)


def test_classes_are_numbers_by_value_then_names():
    assert in_order(["10", "b", "9", "a", "9"]) == ["9", "10", "a", "b"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_with_splits(tmp_path):
    folder = images(tmp_path / "f", "1.png", "2.png", "3 a.png")
    (tmp_path / "t.csv").write_text(
        '﻿Image;Class;Split\n1.png;cat;train\n\n"3 a.png";red dog;validation\n2.png;cat;test\n'
    )
    dataset = prepared(tmp_path, folder, "--labels", tmp_path / "t.csv")
    assert labels(dataset, "val") == [("3 a.png", "red dog")] and list(dataset.splits) == ["train", "val", "test"]


def test_cells_of_a_table_may_hold_line_ends_and_paths_dots(tmp_path):
    folder = images(tmp_path / "f", "1.png", "2.png", "sub/3.png")
    rows = ("image,label,split", './1.png,"big\ndog",val', "2.png,cat,val", "sub/../sub/3.png,cat,val")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    dataset = prepared(tmp_path, folder, "--labels", tmp_path / "t.csv")
    assert labels(dataset, "val") == [("1.png", "big dog"), ("2.png", "cat"), ("sub/3.png", "cat")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,text\n1.png,cat\n", "t.csv:1: the header 'image,text' has no column for the label"),
        ("a,label\n1.png,cat\n", "no column for the image"),
        ("", "t.csv: is empty"),
        ("image,label\n", "holds a header but no row"),
        ("image,label\n1.png,cat\n1.png,dog\n", 't.csv:3: 1.png has class "dog" here and "cat" in train'),
        ("image,label\n1.png, \n", 't.csv:2: column "label" is empty'),
        ("image,label\n1.png,cat,x\n", "t.csv:2: 3 columns where the header has 2"),
        ("image,label\n9.png,cat\n", "1 of 1 images are not in"),
        ('image,label\n"1.png,cat\n', "t.csv:2: not a row of a table"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, says):
    (tmp_path / "t.csv").write_text(text)
    folder = images(tmp_path / "f", "1.png")
    assert says in refuse(SCRIPT, "--folder", folder, "--labels", tmp_path / "t.csv", "--output", tmp_path / "o")


# --- split files ------------------------------------------------------------------------------------------------------

GOOD = {"train": [["b.png", 1, "dog_b"], ["a.png", 0, "cat"]], "val": [], "test": [["c.png", 1, "dog_b"]]}


def test_a_split_file_keeps_its_order(tmp_path):
    folder = images(tmp_path / "f", "a.png", "b.png", "c.png")
    (tmp_path / "split_zhou_Pets.json").write_text(json.dumps(GOOD))
    dataset = prepared(tmp_path, folder, "--split_file", tmp_path / "split_zhou_Pets.json")
    assert dataset.name == "Pets" and dataset.extra["classes"] == ["cat", "dog_b"] and "val" not in dataset.splits
    assert labels(dataset, "train") == [("b.png", "dog_b"), ("a.png", "cat")]


def changed(**more: object) -> dict:
    return {**GOOD, **more}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], 'has no field "train"'),
        (changed(train={}), 'field "train" is not a list'),
        (changed(train=[]), 'field "train" is empty'),
        (changed(test=[["c.png", 1]]), "test[0]: \"['c.png', 1]\" is not"),
        (changed(test=[["c.png", "1", "dog_b"]]), "test[0]: the label is '1'"),
        (changed(test=[["c.png", True, "dog_b"]]), "the label is True"),
        (changed(test=[["c.png", -1, "dog_b"]]), "the label is -1"),
        (changed(test=[["c.png", 1, " "]]), "the class name is ' '"),
        (changed(test=[[None, 1, "dog_b"]]), "the path is None"),
        (changed(test=[["c.png", 1, "cow"]]), 'label 1 is "cow" here and "dog_b" in'),
        (changed(test=[["c.png", 2, "dog_b"]]), 'class "dog_b" has label 2 here and 1 in'),
        (changed(test=[["a.png", 1, "dog_b"]]), 'a.png has class "dog_b" here and "cat" in train'),
        (changed(test=[["../c.png", 1, "dog_b"]]), "1 of 3 images are not in"),
    ],
)
def test_a_malformed_split_file_is_named(tmp_path, content, says):
    folder = images(tmp_path / "f", "a.png", "b.png", "c.png")
    (tmp_path / "s.json").write_text(json.dumps(content))
    error = refuse(SCRIPT, "--folder", folder, "--split_file", tmp_path / "s.json", "--output", tmp_path / "o")
    assert says in error and not (tmp_path / "o").exists()


def test_gaps_repeats_and_leaks_are_said(tmp_path, capsys):
    folder = images(tmp_path / "f", "a.png", "b.png", "c.png")
    content = {"train": [["a.png", 0, "x"], ["a.png", 0, "x"], ["b.png", 3, "y"]], "test": [["a.png", 0, "x"]]}
    (tmp_path / "s.json").write_text(json.dumps(content))
    dataset = prepared(tmp_path, folder, "--split_file", tmp_path / "s.json")
    said = capsys.readouterr().out
    assert dataset.extra["classes"] == ["x", "y"] and "no image has label 1, 2" in said
    assert "counted once: 1" in said and "images both in train and in test (1): a.png" in said


# --- list files -------------------------------------------------------------------------------------------------------


def test_list_files_of_vtab(tmp_path, capsys):
    folder = images(tmp_path / "caltech", "images/train/0.jpg", "images/val/0 b.jpg", "images/test/0.jpg")
    lists = {
        "train800": "images/train/0.jpg 1\n",
        "val200": "images/val/0 b.jpg 0\n",
        "train800val200": "images/train/0.jpg 1\nimages/val/0 b.jpg 0\n",
        "test": "images/test/0.jpg 2\n",
    }
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "readme.txt").write_text("not a list")
    dataset = prepared(tmp_path, folder, "--lists", folder)
    assert list(dataset.splits) == ["train", "val", "test", "trainval"] and dataset.extra["classes"] == ["0", "1", "2"]
    assert labels(dataset, "trainval") == [("images/train/0.jpg", "1"), ("images/val/0 b.jpg", "0")]
    assert "the classes have no names" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("bird\ncat\ndog\ncow\n")
    words = ("--lists", folder / "train800.txt", folder / "test.txt", "--classes", tmp_path / "names.txt")
    dataset = prepared(tmp_path, folder, *words)
    assert labels(dataset, "test") == [("images/test/0.jpg", "dog")] and list(dataset.splits) == ["train", "test"]
    assert "classes without a training image: dog" in (said := capsys.readouterr().out)
    assert "classes without any image: bird, cow" in said


@pytest.mark.parametrize(
    ("text", "names", "says"),
    [
        ("images/0.jpg\n", "", "train.txt:1: 'images/0.jpg'"),
        ("images/0.jpg x\n", "", "train.txt:1: 'images/0.jpg x'"),
        ("images/0.jpg -1\n", "", "train.txt:1"),
        ("\n", "", "train.txt: is empty"),
        ("0.png 2\n", "a\nb\n", "train.txt:1: class number 2, but --classes names only 2"),
        ("0.png 0\n0.png 1\n", "a\nb\n", 'train.txt:2: 0.png has class "b" here and "a" in train'),
        ("0.png 0\n", "a\na\n", 'names.txt:2: class "a" is already in line 1'),
        ("0.png 0\n", "a\n\nb\n", "names.txt:2: is blank"),
    ],
)
def test_a_bad_list_is_named(tmp_path, text, names, says):
    folder = images(tmp_path / "f", "0.png")
    (tmp_path / "train.txt").write_text(text)
    words = ["--lists", tmp_path / "train.txt"]
    if names:
        (tmp_path / "names.txt").write_text(names)
        words += ["--classes", tmp_path / "names.txt"]
    assert says in refuse(SCRIPT, "--folder", folder, "--output", tmp_path / "o", *words)


# --- the format -------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, **extra: object) -> Dataset:
    images(tmp_path, "1.png")
    records = [{"id": "1", "image": "1.png", "label": "cat"}]
    where = {"task": "classification", "media_root": tmp_path, "source": "a test"}
    return write_dataset(tmp_path / "d", name="d", splits={"train": records}, extra=extra, **where)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, '"label": \'cat\' is not in "classes"'),
        ({"classes": ["dog"]}, '"label": \'cat\' is not in "classes"'),
        ({"classes": ["cat", "dog", "cat"]}, "'cat' is there twice (numbers 0 and 2)"),
        ({"classes": ["cat", " "]}, '"classes[1]"'),
        ({"classes": ["cat"], "templates": ["a photo"]}, '"templates"'),
    ],
)
def test_wrong_fields_of_a_dataset(tmp_path, extra, says):
    with pytest.raises(UserError) as raised:
        written(tmp_path, **extra)
    assert says in str(raised.value)


def test_an_edited_dataset_is_checked_when_it_is_read(tmp_path):
    dataset = written(tmp_path, classes=["cat"], templates=["a {}"])
    file = dataset.split_file("train")
    file.write_text(file.read_text().replace("cat", "cow"))
    with pytest.raises(UserError, match=r"train.jsonl:1: field \"label\": 'cow' is not in"):
        Dataset.open(tmp_path / "d").records("train")
    manifest = tmp_path / "d" / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"classes"', '"klasses"'))
    with pytest.raises(UserError, match='field "classes" is missing'):
        Dataset.open(tmp_path / "d")


def test_shots_are_those_of_the_published_code():
    """Seed the generator, then for each class in the order of its first item random.sample: train first, then val."""
    from vlkit.tasks.classification.shots import few_shot

    train = [{"id": str(i), "label": "abcab"[i % 5]} for i in range(60)] + [{"id": "x", "label": "z"}]
    val = [{"id": f"v{i}", "label": "ba"[i % 2]} for i in range(20)]
    random.seed(2)
    expected: list[list[str]] = []
    for records, shots in ((train, 8), (val, 4)):
        drawn = []
        for label in dict.fromkeys(record["label"] for record in records):
            own = [record for record in records if record["label"] == label]
            drawn += random.sample(own, shots) if len(own) >= shots else own
        expected.append([record["id"] for record in drawn])
    found = few_shot(train, val, 8, seed=2)
    assert [[record["id"] for record in records] for records in found] == expected
    assert few_shot(train, val, 0, 1) == (train, val)
    with pytest.raises(UserError):
        few_shot(train, val, -1, 1)
