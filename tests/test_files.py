"""Text and JSON as editors, spreadsheets and shells save them, through every reader of a user's file."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.sources import coco, flickr30k, flickr30k_entities, folder, gqa, msrvtt, msvd, refcoco, vqav2
from vlkit.errors import UserError
from vlkit.files import cache_folder, read_json, read_text, text_lines
from vlkit.tasks.vqa.data import read_vocabulary

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
"""``utf-16`` writes a byte order mark."""
TEXT = "na\u00efve \u2014 \U0001f415"
IMAGES = {"images": [{"id": 123, "file_name": "000000000123.jpg", "width": 9, "height": 9}]}
BOX = {"id": 5, "image_id": 123, "category_id": 1, "bbox": [0, 0, 4, 4]}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\r", ["a", "b"]),
        ("a\n\n", ["a", ""]),
        ("a\u2028b\x85c\x0bd\x0ce\nf", ["a\u2028b\x85c\x0bd\x0ce", "f"]),
    ],
)
def test_lines_end_with_line_feeds(text: str, lines: list[str]) -> None:
    assert text_lines(text) == lines


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_byte_order_marks_are_no_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(json.dumps({"a": TEXT}, ensure_ascii=False).encode(encoding))
    assert read_json(path) == {"a": TEXT}
    assert read_text(path).startswith("{")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfea", "x.json: not UTF-8 text"),
        (b"\xe4", "x.json: not UTF-8 text"),
        (b'{"a": 1,\n}', "x.json: line 2: not valid JSON"),
        (b"[" * 100_000, "x.json: .*nesting too deep"),
        (b"9" * 5000, "x.json: not readable JSON"),
        (None, "x.json: no such file; is this the right file"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)


def coco_captions(put: Callable, root: Path) -> list[str]:
    texts = [{"id": 1, "image_id": 123, "caption": TEXT}]
    path = put("captions_val2017.json", json.dumps({**IMAGES, "annotations": texts}, ensure_ascii=False))
    return coco.read(path).splits["val"][0]["texts"]


def karpathy(put: Callable, root: Path) -> list[str]:
    image = {"filename": "1.jpg", "split": "val", "sentences": [{"raw": TEXT}]}
    path = put("dataset_flickr30k.json", json.dumps({"images": [image], "dataset": "flickr30k"}, ensure_ascii=False))
    return flickr30k.read(path).splits["val"][0]["texts"]


def tokens(put: Callable, root: Path) -> list[str]:
    lists = put("lists/val.txt", "1\n").parent
    return flickr30k.read(put("x.token", f"1.jpg#0\t{TEXT}\n"), split_lists=lists).splits["val"][0]["texts"]


def own_table(put: Callable, root: Path) -> list[str]:
    path = put("captions.csv", f"image,caption\nd.png,{TEXT}\n")
    return folder.read(root, path, val=0, test=0).splits["train"][0]["texts"]


def own_json(put: Callable, root: Path) -> list[str]:
    path = put("captions.json", json.dumps({"d.png": TEXT}, ensure_ascii=False))
    return folder.read(root, path, val=0, test=0).splits["train"][0]["texts"]


def own_lines(put: Callable, root: Path) -> list[str]:
    path = put("captions.jsonl", json.dumps({"image": "d.png", "text": TEXT}, ensure_ascii=False))
    return folder.read(root, path, val=0, test=0).splits["train"][0]["texts"]


def own_texts(put: Callable, root: Path) -> list[str]:
    put("d.txt", TEXT)
    return folder.read(root, val=0, test=0).splits["train"][0]["texts"]


def questions_vqa(put: Callable, root: Path) -> list[str]:
    asked = [{"image_id": 1, "question": TEXT, "question_id": 1000}]
    given = [{"image_id": 1, "question_id": 1000, "answers": [{"answer": TEXT}] * 10}]
    paths = [
        put("q_val2014.json", json.dumps({"questions": asked}, ensure_ascii=False)),
        put("a_val2014.json", json.dumps({"annotations": given}, ensure_ascii=False)),
    ]
    record = vqav2.read(paths[:1], paths[1:]).splits["val"][0]
    return list({record["question"], *record["answers"]})


def questions_gqa(put: Callable, root: Path) -> list[str]:
    path = put("val_balanced_questions.json", json.dumps({"01": {"imageId": "1", "question": TEXT, "answer": "x"}}))
    return [gqa.read([path]).splits["val"][0]["question"]]


def references(put: Callable, root: Path) -> list[str]:
    ref = {"split": "val", "image_id": 123, "ann_id": 5, "ref_id": 1, "sentences": [{"sent": TEXT, "sent_id": 1}]}
    put("instances.json", json.dumps({**IMAGES, "annotations": [BOX]}))
    return [refcoco.read_refs(put("refs(unc).json", json.dumps([ref]))).splits["val"][0]["text"]]


def phrases(put: Callable, root: Path) -> list[str]:
    put("val.txt", "1\n")
    put("Sentences/1.txt", f"[/EN#5/other {TEXT}] .\n")
    box = "<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    put("Annotations/1.xml", f"<annotation><object><name>5</name>{box}</object></annotation>")
    return [flickr30k_entities.read(root).splits["val"][0]["text"]]


def clips_msrvtt(put: Callable, root: Path) -> list[str]:
    videos = [{"video_id": f"video{i}", "split": "train"} for i in range(2)]
    sentences = [{"video_id": f"video{i}", "sen_id": i, "caption": TEXT} for i in range(2)]
    path = put("MSRVTT_data.json", json.dumps({"videos": videos, "sentences": sentences}, ensure_ascii=False))
    put("MSRVTT_train.9k.csv", "video_id\nvideo0\n")
    put("MSRVTT_JSFUSION_test.csv", f"video_id,sentence\nvideo1,{TEXT}\n")
    return msrvtt.read(path).splits["test"][0]["texts"]


def clips_msvd(put: Callable, root: Path) -> list[str]:
    (root / "raw-captions.pkl").write_bytes(pickle.dumps({"a_1_2": [TEXT.split()]}))
    put("val_list.txt", "a_1_2\n")
    return msvd.read(root).splits["val"][0]["texts"]


def vocabulary(put: Callable, root: Path) -> list[str]:
    return read_vocabulary(put("answers.json", json.dumps([TEXT], ensure_ascii=False)))


READERS = [coco_captions, karpathy, tokens, own_table, own_json, own_lines, own_texts, questions_vqa, questions_gqa]
READERS += [references, phrases, clips_msrvtt, clips_msvd, vocabulary]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_every_reader_takes_byte_order_marks(read: Callable, encoding: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")

    def put(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode(encoding))
        return path

    assert read(put, tmp_path) == [TEXT]


def test_an_edited_manifest_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    record = {"id": "1", "image": "d.png", "texts": ["x"]}
    write_dataset(tmp_path, name="n", task="retrieval", splits={"val": [record]}, media_root=tmp_path, source=None)
    for name in ("val.jsonl", "dataset.json"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert Dataset.open(tmp_path, "retrieval").records("val") == [record]


def test_a_home_that_cannot_be_written_gets_a_cache_in_the_temporary_folder(tmp_path, monkeypatch, caplog):
    for name in ("VLKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "vlkit" and cache_folder().is_dir()
    # A file is no home, for root as well.
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with caplog.at_level("WARNING"):
        found = cache_folder()
        assert cache_folder() == found == tmp_path / "tmp" / f"vlkit-cache-{os.getuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    assert len(caplog.records) == 1 and "VLKIT_CACHE" in caplog.text
    # A folder that somebody else has put there is not used.
    found.rmdir()
    found.symlink_to(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "other"))
    with pytest.raises(UserError, match="set VLKIT_CACHE"):
        cache_folder()
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
