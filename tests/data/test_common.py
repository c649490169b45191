"""Fields of official files, and ids as other tools write them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlkit.data.sources import coco, msrvtt, refcoco, vqav2
from vlkit.data.sources.common import take_id, whole_number
from vlkit.errors import UserError


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7), ("7", 7), ("000000000007", 7), (" 7 ", 7), (7.0, 7), ("7.0", 7), (-7, -7)]
    + [(value, None) for value in (True, None, "", "7a", "7.5", 7.5, float("nan"), float("inf"), [7], "\u0667x")],
)
def test_whole_numbers(value: Any, number: int | None) -> None:
    assert whole_number(value) == number
    if number is None:
        with pytest.raises(UserError, match='there: field "id" is '):
            take_id({"id": value}, "id", "there")


IMAGE = {"id": 123, "file_name": "000000000123.jpg", "width": 9, "height": 9}
BOX = {"id": 5, "image_id": 123, "category_id": 18, "bbox": [0, 0, 4, 4]}
REF = {"split": "val", "image_id": 123, "ann_id": 5, "ref_id": 1, "sentences": [{"sent": "x", "sent_id": 1}]}


def of_captions(folder: Path, spell: Callable) -> Any:
    texts = [{"id": id, "image_id": 123, "caption": str(id)} for id in (100, 9, 30)]
    put(folder / "captions_val2017.json", spell({"images": [IMAGE], "annotations": texts}))
    return coco.read(folder).splits


def of_karpathy(folder: Path, spell: Callable) -> Any:
    image = {"filename": "a.jpg", "split": "val", "cocoid": 123, "sentences": [{"raw": "x", "sentid": 5}]}
    return coco.read(put(folder / "dataset_coco.json", spell({"images": [image], "dataset": "coco"}))).splits


def of_questions(folder: Path, spell: Callable) -> Any:
    asked = {"questions": [{"image_id": 123, "question": "x", "question_id": 123000}]}
    given = {"annotations": [{"image_id": 123, "question_id": 123000, "answers": [{"answer": "y"}] * 10}]}
    return vqav2.read([put(folder / "q_val2014.json", asked)], [put(folder / "a_val2014.json", spell(given))]).splits


def of_references(folder: Path, spell: Callable) -> Any:
    boxes = {"images": [IMAGE], "annotations": [BOX], "categories": [{"id": 18, "name": "dog"}]}
    put(folder / "instances.json", spell(boxes))
    return refcoco.read_refs(put(folder / "refs(unc).json", [REF])).splits


def of_expressions(folder: Path, spell: Callable) -> Any:
    content = {"images": [{**IMAGE, "caption": "x", "original_id": 9}], "annotations": [{**BOX, "original_id": 8}]}
    return refcoco.read_mdetr([put(folder / "finetune_refcoco_val.json", spell(content))]).splits


def of_clips(folder: Path, spell: Callable) -> Any:
    sentences = [{"video_id": "video0", "sen_id": id, "caption": str(id)} for id in (100, 9, 30)]
    content = {"videos": [{"video_id": "video0", "split": "train"}], "sentences": sentences}
    return msrvtt.read(put(folder / "MSRVTT_data.json", spell(content)), split="full").splits


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def respelled(value: Any, spell: Callable[[int], Any], name: str = "") -> Any:
    """A copy in which every id is written otherwise."""
    if isinstance(value, dict):
        return {key: respelled(item, spell, key) for key, item in value.items()}
    if isinstance(value, list):
        return [respelled(item, spell, name) for item in value]
    is_id = isinstance(value, int) and (name == "cocoid" or name.endswith("id"))
    return spell(value) if is_id else copy.copy(value)


@pytest.mark.parametrize("read", [of_captions, of_karpathy, of_questions, of_references, of_expressions, of_clips])
@pytest.mark.parametrize("spell", [str, float, lambda id: f"{id:012d}"], ids=["text", "float", "padded"])
def test_ids_as_text_or_with_a_point_are_the_same_ids(read: Callable, spell: Callable, tmp_path: Path) -> None:
    expected = read(tmp_path / "a", lambda content: content)
    assert read(tmp_path / "b", lambda content: respelled(content, spell)) == expected
