"""RefCOCO, RefCOCO+, RefCOCOg: ``refs(*.p)`` with ``instances.json``, or MDETR's ``finetune_refcoco*_*.json``."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from vlkit.data.boxes import Record
from vlkit.data.restricted_pickle import read_pickle
from vlkit.data.sources.annotated_boxes import annotated_box, annotations_by_image, refuse_strays
from vlkit.data.sources.common import take, take_id, whole_number
from vlkit.data.sources.ids import other_places, with_folder
from vlkit.data.sources.prepare import Counts, Source, compare_counts
from vlkit.errors import UserError, some
from vlkit.files import read_json

SPLITS = ("train", "val", "test", "testA", "testB")
OFFICIAL: dict[tuple[str, str], Counts] = {
    ("refcoco", "unc"): {
        "train": (16_994, 120_624),
        "val": (1_500, 10_834),
        "testA": (750, 5_657),
        "testB": (750, 5_095),
    },
    ("refcoco+", "unc"): {
        "train": (16_992, 120_191),
        "val": (1_500, 10_758),
        "testA": (750, 5_726),
        "testB": (750, 4_889),
    },
    ("refcocog", "umd"): {"train": (21_899, 80_512), "val": (1_300, 4_896), "test": (2_600, 9_602)},
}
"""(dataset, split by) -> images and expressions per split."""
_REFS_NAME = re.compile(r"refs\((\w+)\)\.(?:p|pkl|json)")
_SUFFIX = re.compile(r"_\d+(?=\.\w+$)")
_MDETR_NAME = re.compile(r"(?:finetune_)?(?P<name>.+)_(?P<split>train|val|testA|testB|test)")


def read_refs(refs: str | Path, instances: str | Path | None = None, split_by: str | None = None) -> Source:
    """Read a dataset in its official form: one record per sentence.

    Args:
        refs: ``refs(unc).p`` or the like (a JSON file of the same list will do), or the folder that holds it.
        instances: ``instances.json``; None = beside ``refs``.
        split_by: which of a folder's refs files (``unc``, ``umd``, ``google``); a file must agree with it.

    Raises:
        UserError: a file is missing, is damaged or contains code, a reference lacks its image or box, or a split is
            unknown; the message names the file and the record. Impossible boxes are listed in ``wrong`` of the source.
    """
    path = _refs_file(Path(refs), split_by)
    instances = path.parent / "instances.json" if instances is None else Path(instances)
    content = read_json(path) if path.suffix == ".json" else read_pickle(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: not a list of references; is this the official file?")
    boxes = _Instances(instances)
    match = _REFS_NAME.fullmatch(path.name)
    protocol = match[1] if match else split_by or ""
    inputs = {"refs": str(path.resolve()), "instances": str(instances.resolve()), "split_by": protocol}
    source = _new_source(_dataset_name(path), inputs)
    for index, ref in enumerate(content):
        where = f"{path}: [{index}]"
        for split, record, wrong in _sentences(ref, boxes, where):
            _add(source, split, record, wrong)
    return _finished(source, protocol)


def read_mdetr(files: Sequence[str | Path]) -> Source:
    """Read MDETR's files, one per split (``finetune_refcoco_train.json``): one record per expression.

    Raises:
        UserError: a file name contains no split, a split has two files, or an expression does not have exactly one box;
            the message names the file and the record. Impossible boxes are listed in ``wrong`` of the source.
    """
    names, given = set(), {}
    for path in map(Path, files):
        match = _MDETR_NAME.fullmatch(path.stem)
        if not match:
            raise UserError(f"{path}: its name contains no split; rename it, as in finetune_refcoco_train.json")
        if match["split"] in given:
            raise UserError(f'{path}: split "{match["split"]}" comes from {given[match["split"]].name} too')
        given[match["split"]] = path
        names.add(match["name"])
    if len(names) > 1:
        raise UserError(f"{some(sorted(names))}: these are files of different datasets; prepare one at a time")
    source = _new_source(names.pop(), {"mdetr": [str(path.resolve()) for path in given.values()]})
    for split in sorted(given, key=SPLITS.index):
        content = read_json(given[split])
        for record, wrong in _expressions(content, f"{given[split]}"):
            _add(source, split, record, wrong)
    return _finished(source, "umd" if source.name == "refcocog" else "unc")


def _new_source(name: str, inputs: dict[str, Any]) -> Source:
    source = Source(name, "grounding", {}, inputs)
    source.elsewhere = other_places
    return source


def _dataset_name(path: Path) -> str:
    """``refcoco+`` for ``.../refcoco+/refs(unc).p``; ``refcoco`` if the folder name does not tell."""
    folder = path.resolve().parent.name
    return folder if folder.startswith("refcoco") else "refcoco"


def _refs_file(path: Path, split_by: str | None) -> Path:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _REFS_NAME.fullmatch(file.name))
        chosen = [file for file in found if split_by in (None, cast(re.Match, _REFS_NAME.fullmatch(file.name))[1])]
        if len(chosen) != 1:
            held = some([file.name for file in found]) if found else "no refs(*).p"
            raise UserError(f"{path}: holds {held}; give one file, or choose by --split_by")
        return chosen[0]
    match = _REFS_NAME.fullmatch(path.name)
    if match and split_by not in (None, match[1]):
        raise UserError(
            f"{path}: is split by {match[1]}, not by {split_by}; give refs({split_by}).p or correct --split_by"
        )
    return path


class _Instances:
    """``instances.json`` by id."""

    def __init__(self, path: Path) -> None:
        content = read_json(path)
        self.path = path
        self.images: dict[int, tuple[str, dict[str, Any]]] = {}
        self.boxes: dict[int, tuple[str, dict[str, Any]]] = {}
        for field, target in (("images", self.images), ("annotations", self.boxes)):
            for index, entry in enumerate(take(content, field, list, f"{path}")):
                where = f"{path}: {field}[{index}]"
                target[take_id(entry, "id", where)] = (where, entry)
        named = take(content, "categories", list, f"{path}") if content.get("categories") is not None else []
        self.categories = {take_id(entry, "id", f"{path}: categories"): entry.get("name") for entry in named}

    def find(self, field: str, number: int, where: str) -> tuple[str, dict[str, Any]]:
        """Place and content of the image or annotation that the reference at ``where`` names."""
        found = (self.images if field == "image_id" else self.boxes).get(number)
        if found is None:
            raise UserError(
                f'{where}: field "{field}": {number} is not in {self.path}; do the two files belong together?'
            )
        return found


def _sentences(ref: Any, instances: _Instances, where: str) -> Iterator[tuple[str, Record, str | None]]:
    """Split and record of every sentence of a reference, and what is wrong with its box."""
    split = take(ref, "split", str, where)
    if split not in SPLITS:
        raise UserError(f'{where}: field "split" is "{split}"; known are {", ".join(SPLITS)}')
    image_id, ann_id = take_id(ref, "image_id", where), take_id(ref, "ann_id", where)
    image_where, image = instances.find("image_id", image_id, where)
    box_where, annotation = instances.find("ann_id", ann_id, where)
    if take_id(annotation, "image_id", box_where) != image_id:
        raise UserError(
            f'{where}: field "ann_id": {ann_id} is a box of another image than {image_id}; correct the file'
        )
    common = {"ref_id": take_id(ref, "ref_id", where), "ann_id": ann_id}
    category = instances.categories.get(cast(int, whole_number(annotation.get("category_id"))))
    if category is not None:
        common["category"] = category
    image = _image(image, image_where, ref.get("file_name"))
    box, wrong = annotated_box(annotation, image, box_where)
    for index, sentence in enumerate(take(ref, "sentences", list, where)):
        at = f"{where}.sentences[{index}]"
        field = "raw" if isinstance(sentence, dict) and "sent" not in sentence else "sent"
        text = _clean(take(sentence, field, str, at))
        record = {"id": f"ref/{take_id(sentence, 'sent_id', at)}", **image, "text": text, "box": box, **common}
        yield split, record, wrong


def _expressions(content: Any, path: str) -> Iterator[tuple[Record, str | None]]:
    """Record of every expression of an MDETR file, and what is wrong with its box."""
    boxes = annotations_by_image(content, path)
    for index, image in enumerate(take(content, "images", list, path)):
        where = f"{path}: images[{index}]"
        number = take_id(image, "id", where)
        own = boxes.pop(number, [])
        if len(own) != 1:
            raise UserError(f"{where}: {len(own)} boxes for one expression; is this a file for referring expressions?")
        box_where, annotation = own[0]
        caption = take(image, "caption", str, where)
        record = {"id": f"ref/{number}", **_image(image, where), "text": _clean(caption)}
        record["box"], wrong = annotated_box(annotation, record, box_where)
        if "original_id" in annotation:
            record["ann_id"] = take_id(annotation, "original_id", box_where)
        if (
            annotation.get("tokens_positive") and record["text"] == caption
        ):  # else the positions are not those of the text
            record["tokens_positive"] = annotation["tokens_positive"]
        yield record, wrong
    refuse_strays(boxes, path)


def _image(image: dict[str, Any], where: str, file_name: Any = None) -> dict[str, Any]:
    """``image`` (path), ``width`` and ``height`` of a record. A reference's ``file_name`` may tell the folder; its
    suffix ``_<n>`` is not part of the image's name.
    """
    name = take(image, "file_name", str, where)
    if isinstance(file_name, str) and "/" in file_name and "/" not in name:
        name = posixpath.join(posixpath.dirname(file_name), posixpath.basename(_SUFFIX.sub("", file_name)))
    size = {field: take(image, field, (int, float), where) for field in ("width", "height")}
    return {"image": with_folder(name), **size}


def _clean(text: str) -> str:
    """Single blanks between words, none around; lone surrogates become "?"."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _add(source: Source, split: str, record: Record, wrong: str | None) -> None:
    if wrong:
        if wrong not in source.wrong[-1:]:  # once for all sentences of a reference
            source.wrong.append(wrong)
    elif record["text"]:
        source.splits.setdefault(split, []).append(record)
    else:
        source.blank_texts += 1


def _finished(source: Source, protocol: str) -> Source:
    """Splits in their usual order, counted and compared with the official ones."""
    source.splits = {split: source.splits[split] for split in SPLITS if split in source.splits}
    for split, records in source.splits.items():
        source.counts[split] = (len({record["image"] for record in records}), len(records))
    source.notes += compare_counts(source, OFFICIAL.get((source.name, protocol), {}))
    return source
