"""Parquet files and folders of Hugging Face datasets as prepared datasets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.scripts import call, refuse
from vlkit.data.images import open_image
from vlkit.data.manifest import Dataset
from vlkit.data.sources.rows import Columns, is_table
from vlkit.errors import UserError

datasets = pytest.importorskip("datasets")
SCRIPT = "data_prep/huggingface.py"


def encoded(number: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + number, 8), (20 * number % 256, 90, 200)).save(file, form)
    return file.getvalue()


def rows(count: int, **columns) -> datasets.Dataset:
    """Rows with an image column of the library's own type."""
    images = [{"bytes": encoded(number), "path": None} for number in range(count)]
    return datasets.Dataset.from_dict({"img": images, **columns}).cast_column("img", datasets.Image())


def prepared(tmp_path: Path, source: object, *words: object) -> Dataset:
    call(SCRIPT, "--rows", source, "--output", tmp_path / "out", *words)
    return Dataset.open(tmp_path / "out")


def test_a_saved_folder_with_splits_and_captions_in_lists(tmp_path):
    part = {
        name: rows(count, caption=[[f"{name} {n}", "again"] for n in range(count)])
        for name, count in (("train", 5), ("validation", 2), ("test", 3))
    }
    datasets.DatasetDict(part).save_to_disk(tmp_path / "saved")
    found = prepared(tmp_path, tmp_path / "saved")
    assert {split: entry["records"] for split, entry in found.splits.items()} == {"train": 5, "val": 2, "test": 3}
    record = found.records("val")[1]
    assert record["texts"] == ["validation 1", "again"] and record["id"] == "saved/validation/1"
    assert found.path(record).read_bytes() == encoded(1) and open_image(found.path(record)).size == (9, 8)


def test_rows_of_one_image_are_one_record_and_columns_are_mapped(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = {
        "pixels": [encoded(n // 2, "JPEG") for n in range(6)],
        "a": [f"a {n}" for n in range(6)],
        "b": [f"b {n}" if n else None for n in range(6)],
        "part": ["train", "train", "restval", "restval", "dev", "dev"],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "mine.parquet")
    assert is_table(tmp_path / "mine.parquet")
    columns = ("--columns", "image=pixels,texts=a,texts=b,split=part")
    found = prepared(tmp_path, f"hf:{tmp_path / 'mine.parquet'}", *columns)
    assert [record["texts"] for record in found.records("train")] == [
        ["a 0", "a 1", "b 1"],
        ["a 2", "b 2", "a 3", "b 3"],
    ]
    assert [record["texts"] for record in found.records("val")] == [["a 4", "b 4", "a 5", "b 5"]]
    assert found.records("val")[0]["image"].endswith(".jpg")


def test_a_folder_of_parquet_files_with_class_names(tmp_path):
    names = ["cat", "dog", "never"]
    features = datasets.ClassLabel(names=names)
    table = rows(20, kind=[n % 2 for n in range(20)]).cast_column("kind", features)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    found = prepared(tmp_path, tmp_path / "data", "--task", "classification", "--test", 0.2)
    assert found.extra["classes"] == names
    assert {split: entry["records"] for split, entry in found.splits.items()} == {"train": 14, "val": 2, "test": 4}
    labels = {record["id"]: record["label"] for split in found.splits for record in found.records(split)}
    assert all(label == names[int(name.rpartition("/")[2]) % 2] for name, label in labels.items())


def test_rows_that_cannot_be_used_are_named_or_left_out(tmp_path):
    images = [{"bytes": encoded(0), "path": None}, {"bytes": b"no image", "path": None}, None, {"bytes": encoded(3)}]
    table = datasets.Dataset.from_dict({"image": images, "label": ["a", "a", "b", None]})
    datasets.DatasetDict(
        {"train": table, "test": rows(2, label=["b", "a"]).rename_column("img", "image")}
    ).save_to_disk(tmp_path / "saved")
    words = ("--rows", tmp_path / "saved", "--output", tmp_path / "out", "--task", "classification", "--val", 0)
    said = refuse(SCRIPT, *words)
    assert "split train, row 1: not an image" in said and "3 more" in said and "--partial" in said
    call(SCRIPT, *words, "--partial")
    listed = (tmp_path / "out" / "wrong.txt").read_text().splitlines()
    assert [line.partition("row ")[2] for line in listed] == [
        "1: not an image, or damaged",
        "2: no image",
        "3: no label",
        '0: has class "b", the same image in split train, row 0 "a"',
    ]
    assert Dataset.open(tmp_path / "out").extra["classes"] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--columns", "image=nothing"), "no such column; there are img, caption"),
        (("--columns", "picture=img"), "write KEY=COLUMN, with a key of image, texts"),
        (("--columns", "image=img,image=img"), "image is given twice"),
        (("--task", "classification"), "no column for label; name it by columns label=COLUMN"),
        (("--rows", "hf:no/such/thing"), "no such file or folder"),
    ],
)
def test_wrong_columns_and_names_are_explained(words, part, tmp_path):
    rows(2, caption=["a", "b"]).save_to_disk(tmp_path / "saved")
    assert part in refuse(SCRIPT, "--rows", tmp_path / "saved", "--output", tmp_path / "out", *words)


def test_columns_are_guessed_from_types_and_names():
    features = {"Image": datasets.Value("binary"), "thumb": datasets.Image(), "TEXT": datasets.Value("string")}
    assert Columns.of("", features, "retrieval") == Columns("thumb", ["TEXT"])
    text = datasets.Value("string")
    divided = {"image": datasets.Image(), "text": text, "Split": text}
    assert Columns.of("", divided, "retrieval").split == "Split"
    assert Columns.of("", divided, "retrieval", divided=True).split is None  # the table has splits itself
    assert Columns.of("texts=Split", divided, "retrieval").split is None
    with pytest.raises(UserError, match="no column for image"):
        Columns.of("", {"a": datasets.Value("string"), "caption": datasets.Value("string")}, "retrieval")


def test_rows_train_a_model_from_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    rows(24, text=[f"square {n}" for n in range(24)], unused=list(range(24))).save_to_disk(tmp_path / "saved")
    train = ("tasks/retrieval/train.py", "--data.root", f"hf:{tmp_path / 'saved'}", "--device", "cpu", "--epochs", 1)
    call(*train, "--output", tmp_path / "run", "--data.columns", "texts=text")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["after"]["rsum"] >= 0
    (made,) = (tmp_path / "cache" / "rows").iterdir()
    state = (made / "dataset.json").stat().st_mtime_ns
    call(
        "tasks/retrieval/evaluate.py",
        "--model",
        tmp_path / "run",
        "--data.root",
        tmp_path / "saved",
        "--data.columns",
        "texts=text",
        "--split",
        "train",
    )
    assert [path.name for path in (tmp_path / "cache" / "rows").iterdir()] == [made.name]
    assert (made / "dataset.json").stat().st_mtime_ns == state
    assert "has no columns" in refuse(*train, "--output", tmp_path / "b", "--data.root", made, "--data.columns", "a=b")
    vqa = refuse("tasks/vqa/train.py", "--data.root", f"hf:{tmp_path / 'saved'}", "--output", tmp_path / "c")
    assert "rows are read for retrieval and classification" in vqa
