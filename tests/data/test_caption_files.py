"""Captions as people and other tools write them: none is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlkit.data.sources.caption_files import read_caption_file
from vlkit.errors import UserError

CAT = '{"Image": "c.jpg", "Text": "a cat"}'


def read(folder: Path, name: str, content: str) -> tuple[dict[str, list[str]], list[str]]:
    """Captions by image, and the notes."""
    path = folder / name
    path.write_bytes(content.encode())
    entries, notes = read_caption_file(path)
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.image, []).extend(entry.texts)
    return found, notes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "image,caption,caption2\nd.jpg,a dog,a hound\nc.jpg,a cat,\n"),
        ("c.csv", "image,caption,caption\nd.jpg,a dog,a hound\nc.jpg,a cat,a cat\n"),
        ("c.csv", "image;caption_1;caption_2\nd.jpg;a dog;a hound\nc.jpg;;a cat\n"),
        ("c.csv", "caption.1,image,Caption #2\na dog,d.jpg,a hound\n a cat,c.jpg,\n"),
        ("c.tsv", "image\tsentence0\tsentence1\nd.jpg\ta dog\ta hound\nc.jpg\ta cat\t \n"),
        ("c.csv", 'image,captions\nd.jpg,"[""a dog"", ""a hound""]"\nc.jpg,"[\'a cat\']"\n'),
        ("c.csv", "image,raw\nd.jpg,\"['a dog' 'a hound']\"\nc.jpg,a cat\n"),
        ("c.csv", "image,raw\nd.jpg,\"('a dog', 'a hound',)\"\nc.jpg,\"['a cat'\n 'a cat']\"\n"),
        ("c.jsonl", '{"image": "d.jpg", "caption": "a dog", "captions": ["a hound"]}\n' + CAT),
        ("c.jsonl", '{"image": "d.jpg", "caption": "a dog", "caption": "a hound"}\n' + CAT),
        ("c.json", '{"d.jpg": "a dog", "c.jpg": ["a cat"], "d.jpg": "a hound"}'),
        ("c.json", '{"d.jpg": {"caption": "a dog", "caption2": "a hound"}, "c.jpg": {"text": "a cat"}}'),
        ("c.json", '[{"image": "d.jpg", "sentences": [{"raw": "a dog"}, {"raw": "a hound"}]}, ' + CAT + "]"),
    ],
)
def test_every_caption_is_read(tmp_path: Path, name: str, content: str) -> None:
    found, _ = read(tmp_path, name, content)
    assert {image: [text.strip() for text in dict.fromkeys(texts)] for image, texts in found.items()} == {
        "d.jpg": ["a dog", "a hound"],
        "c.jpg": ["a cat"],
    }


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    found, notes = read(tmp_path, "c.csv", "image,image,alt,caption,split,,alt\na.jpg,b.jpg,x,a dog,train,7,y\n")
    assert found == {"a.jpg": ["a dog"]}
    assert notes == ["c.csv: not read: image (2), alt (3), column 6, which has no name, alt (7)"]
    found, notes = read(tmp_path, "c.jsonl", '{"image": "a.jpg", "caption": "a dog", "alt": "x", "width": null}\n')
    assert (found, notes) == ({"a.jpg": ["a dog"]}, ["c.jsonl: not read: alt"])


def test_columns_of_several_kinds_are_read_and_named(tmp_path: Path) -> None:
    found, notes = read(tmp_path, "c.csv", "filename,title,description\nd.jpg,IMG 2,a dog\n")
    assert found == {"d.jpg": ["IMG 2", "a dog"]}
    assert len(notes) == 1 and "captions were read from title, description" in notes[0]
    assert read(tmp_path, "c.csv", "image,caption,captions,caption_2\nd.jpg,a,b,c\n") == (
        {"d.jpg": ["a", "b", "c"]},
        [],
    )


MARKS = [
    ("c.tsv", 'image\tcaption\nd.jpg\t"a dog\nc.jpg\ta cat"\n', ['"a dog', 'a cat"'], "line 2"),
    ("c.tsv", 'image\tcaption\nd.jpg\t"Run" he says\nc.jpg\t"a\n', ['"Run" he says', '"a'], "2 lines: 2, 3"),
    ("c.tsv", 'caption\timage\n"a dog\td.jpg\na cat"\tc.jpg\n', ['"a dog', 'a cat"'], "line 2"),
    ("c.csv", 'image,caption\r\nd.jpg,"a dog\r\nc.jpg,a cat"\r\n', ['"a dog', 'a cat"'], "line 2"),
    # Quotes that do their work, also over lines.
    ("c.tsv", 'image\tcaption\nd.jpg\t"a dog\nruns"\nc.jpg\t"a\tcat"\n', ["a dog\nruns", "a\tcat"], ""),
    ("c.csv", 'caption,image\n"a,\n""dog""",d.jpg\na cat,c.jpg\n', ['a,\n"dog"', "a cat"], ""),
    ("c.csv", '"image","caption"\n"d.jpg","a dog, [sic]"\nc.jpg,x\n', ["a dog, [sic]", "x"], ""),
    ("c.csv", "image,caption\rd.jpg,a dog\rc.jpg,a cat\r", ["a dog", "a cat"], ""),
]


@pytest.mark.parametrize(("name", "content", "expected", "lines"), MARKS)
def test_quotation_marks(tmp_path: Path, name: str, content: str, expected: list[str], lines: str) -> None:
    found, notes = read(tmp_path, name, content)
    assert found == {"d.jpg": expected[:1], "c.jpg": expected[1:]}
    assert [note.partition("text in ")[2] for note in notes] == ([lines] if lines else [])


@pytest.mark.parametrize("caption", ["[a dog]", "(a dog)", "[1, 2]", "['a dog", "[]", '["a", 2]'])
def test_brackets_that_are_no_list_stay(tmp_path: Path, caption: str) -> None:
    assert read(tmp_path, "c.tsv", f"image\tcaption\nd.jpg\t{caption}\n")[0] == {"d.jpg": [caption]}


def test_large_tables_are_read_in_good_time(tmp_path: Path) -> None:
    """A mark in every line must not make each line look through all that follow."""
    lines = "".join(f'{i}.jpg\t"caption {i}\n' for i in range(20_000))
    found, notes = read(tmp_path, "c.tsv", "image\tcaption\n" + lines)
    assert len(found) == 20_000 and found["7.jpg"] == ['"caption 7'] and "20000 lines" in notes[0]


def test_annotations_of_coco_are_sent_to_their_script(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"COCO annotations.*data_prep/coco\.py"):
        read(tmp_path, "c.json", json.dumps({"images": [], "annotations": []}))
