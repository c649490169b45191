"""Rows of tables and JSONL files: their places, and what is wrong named with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vlkit.data.masks import box_of_mask
from vlkit.data.records import record_problem
from vlkit.data.sources import folder, gqa, text_files
from vlkit.data.sources.table import json_rows, table_rows
from vlkit.errors import UserError


def rows(path: Path, text: str, **how: object) -> list:
    path.write_text(text, encoding="utf-8")
    return list(table_rows(path, "write a header a,b", **how))  # type: ignore[arg-type]


def test_a_row_has_the_place_of_its_first_line(tmp_path: Path) -> None:
    text = 'A, b\r\n1,"two\r\nlines, and U+2028\u2028 too"\r\n\r\n3,4\r\n'
    found = rows(tmp_path / "t.csv", text, lower=True)
    assert [(where.rpartition(":")[2], row["a"]) for where, row in found] == [("2", "1"), ("5", "3")]
    assert found[0][1]["b"] == "two\nlines, and U+2028\u2028 too"


def test_the_separator_is_that_of_the_header(tmp_path: Path) -> None:
    assert rows(tmp_path / "t.csv", "a;b\n1,5;2\n", separators=",;")[0][1] == {"a": "1,5", "b": "2"}
    assert rows(tmp_path / "t.tsv", 'a\tb\n"1\t2"\n', separators="\t", quotes=False)[0][1] == {"a": '"1', "b": '2"'}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: is empty; write a header"),
        ("\n \n", "t.csv: is empty; write a header"),
        ("\n\nb\n", 't.csv:3: the header has no column "a"'),
        ("a,a\n", 't.csv:1: two columns are named "a"'),
        ("b\n1\n", 't.csv:1: the header has no column "a"; write a header'),
        ("a,b\n1,2\n3\n", "t.csv:3: 1 columns where the header has 2"),
        ("a,b\n ,2\n", 't.csv:2: column "a" is empty'),
        ('a,b\n1,2\n3,"4\n5,6\n', "t.csv:3: not a row of a table"),
        (f"a,b\n1,{'x' * 140_000}\n", "t.csv:2: not a row of a table"),
        ("a,b\n\n1,2\n", "t.csv:2: the line is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows(tmp_path / "t.csv", text, filled=("a",), blank_rows="refuse")


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "\u2028"}\n\n{"a": 2}\n\n', encoding="utf-8")
    assert [row["a"] for _, row in json_rows(path, "{}")] == ["\u2028", 2]
    with pytest.raises(UserError, match=r"t\.jsonl:2: the line is empty"):
        list(json_rows(path, "{}", blank_rows="refuse"))
    for text, message in (("[" * 100_000, ":1: not valid JSON"), ("[1]", ":1: not a JSON object; expected is {}")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            list(json_rows(path, "{}"))


def test_splits_have_their_usual_names(tmp_path: Path) -> None:
    names = ("Training", "validation", "TEST")
    table = "image,caption,split\n" + "".join(f"{n}.png,it,{name}\n" for n, name in enumerate(names))
    (tmp_path / "c.csv").write_text(table)
    for n in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png")
    assert list(folder.read(tmp_path, tmp_path / "c.csv").splits) == ["train", "val", "test"]
    table = "text,label,split\n" + "".join(f"t{n},{n},{name}\n" for n, name in enumerate(names))
    (tmp_path / "t.csv").write_text(table)
    source = text_files.read({"train": tmp_path / "t.csv"}, text_files.Columns(), "own")
    assert set(source.splits) == {"train", "val", "test"}


def test_scores_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('[{"question_id": "1", "img_id": "n1", "sent": "what?", "label": {"dog": null}}]')
    with pytest.raises(UserError, match=r'train.json: entry 0: label: field "dog"'):
        gqa.read([path])


def test_a_place_in_a_tar_that_is_null_is_named() -> None:
    problem = record_problem({"id": "a", "image": "a.png", "texts": ["it"], "tar": None}, "retrieval")
    assert problem is not None and 'field "tar"' in problem


@pytest.mark.parametrize(
    ("mask", "size", "part"),
    [
        ([[1, 1, 1e9, 1, 20, 20]], (80, 100), "near the image"),
        ([[1, 1, 20, 1, 20, 20]], (80, float("nan")), "is of an image of"),
        ([[1, 1, 20, 1, 20, 20]], (10**9, 10**9), "is of an image of"),
        ({"size": [80, 100], "counts": [7000, 10]}, (80, 100), "do not add up"),
        ({"size": [80, 100], "counts": [-1, 8001]}, (80, 100), "do not add up"),
        ({"size": [80, 100], "counts": "Zo"}, (80, 100), "are no run-length code"),
        ({"size": [80, 100]}, (80, 100), "no run-length code"),
        (7, (80, 100), "is of the size 7"),
    ],
)
def test_masks_that_would_end_the_process_are_named(mask: object, size: tuple, part: str) -> None:
    height, width = size
    with pytest.raises(UserError, match=part):
        box_of_mask(mask, width, height, "f.json: annotations[0]")
    assert box_of_mask({"size": [4, 5], "counts": [5, 2, 13]}, 5, 4, "") == [1, 1, 1, 2]
