"""The fields of a prepared dataset's records, by task. Plain checks, fast enough for 10**5 records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlkit.data.boxes import Record, all_boxes, box_problem
from vlkit.data.tar_region import FIELD, region_problem

ANSWERS = 10  # the VQA metric is defined over ten human answers
SECOND = "image2"
"""Field of the second image where a question is about a pair of images; ``dataset.json`` then says ``"images": 2``."""


@dataclass(frozen=True)
class RecordKind:
    """The fields of a task's records.

    Attributes:
        media: the field that names the medium; None = records of texts alone.
        problem: record -> the problem of its other fields, as in :func:`record_problem`; None if there is none.
        unique: fields whose values must be unique within a split.
        dataset_problem: all fields of ``dataset.json`` -> the problem of those that only this task has.
        misfit: the same fields -> a check of a record against them, as ``problem``. Called once for many records.
    """

    media: Literal["image", "video"] | None
    problem: Callable[[Record], str | None]
    unique: tuple[str, ...] = ("id",)
    dataset_problem: Callable[[Mapping[str, Any]], str | None] = lambda fields: None
    misfit: Callable[[Mapping[str, Any]], Callable[[Record], str | None]] = lambda fields: lambda record: None


def record_problem(record: Any, task: str) -> str | None:
    """Say what is wrong with a record of ``task``: one phrase with the field and the fix; None if it is good."""
    if not isinstance(record, dict):
        return "not a JSON object; write one {...} per line"
    fields = media_fields(record, task)
    problem = next(filter(None, (_text_problem(record, field) for field in ("id", *fields))), None)
    if problem:
        return problem
    for field in fields:
        problem = path_problem(record[field])
        if problem:
            return f'field "{field}": {record[field]!r} {problem}'
    problem = region_problem(record)
    if problem:
        return problem
    return RECORDS[task].problem(record)


def media_fields(record: Mapping[str, Any], task: str) -> list[str]:
    """The fields of a record that name media: two for a question about a pair of images, none for texts alone."""
    first = RECORDS[task].media
    return [] if first is None else [first, SECOND] if task == "vqa" and SECOND in record else [first]


def each_medium(record: Record, task: str) -> list[Record]:
    """A record for each medium of a record, for functions that open one: itself, and for a question about a pair of
    images also a copy with the second in the place of the first.
    """
    return [record, *({**record, "image": record[name]} for name in media_fields(record, task)[1:])]


def path_problem(path: str) -> str | None:
    """Say why a media path may lie outside the media root, judged by its text alone; None if it cannot.

    Any ``..`` is refused, because behind a symbolic link it may lead outside.
    """
    if path.startswith("/") or path[1:3] == ":/":
        return "is absolute; write it relative to the media root"
    if "\\" in path:
        return 'contains "\\"; separate folders by "/"'
    if "\0" in path:
        return "contains a NUL character; correct it"
    if ".." in path and ".." in path.split("/"):
        return 'leaves the media root by ".."; write the path without it'
    return None


def _text_problem(record: Record, field: str) -> str | None:
    value = record.get(field)
    if _is_text(value):
        return None
    if value is None:
        return f'field "{field}" is missing; add it'
    return f'field "{field}" is {_shown(value)}; expected is a text (valid Unicode, not empty)'


def _texts_problem(record: Record) -> str | None:
    texts = record.get("texts")
    if texts is None:
        return 'field "texts" is missing; add a list of captions'
    if not isinstance(texts, list) or not texts:
        return f'field "texts" is {_shown(texts)}; expected is a list of at least one caption'
    for index, text in enumerate(texts):
        if not _is_text(text):
            return f'field "texts[{index}]" is {_shown(text)}; give a caption that is not empty, or remove it'
    return None


def _video_problem(record: Record) -> str | None:
    problem = _texts_problem(record)
    if problem:
        return problem
    for field in ("start", "end"):
        value = record.get(field)
        if value is not None and (not _is_number(value) or value < 0):
            return f'field "{field}" is {_shown(value)}; expected are seconds, 0 or more'
    start, end = record.get("start") or 0, record.get("end")
    if end is not None and end <= start:
        return f'field "end" is {end}, not after "start" ({start}); correct the times'
    return None


def _vqa_problem(record: Record) -> str | None:
    problem = _text_problem(record, "question")
    if problem:
        return problem
    question_id = record.get("question_id")
    if question_id is None:
        return 'field "question_id" is missing; add it'
    if isinstance(question_id, bool) or not isinstance(question_id, (int, str)) or question_id == "":
        return f'field "question_id" is {_shown(question_id)}; expected is a whole number or a text'
    if SECOND in record and FIELD in record:
        return f'field "{FIELD}": images of pairs are not read out of tars; unpack them'
    answers = record.get("answers")
    if answers is None:  # a test set whose answers are hidden
        return None
    if not isinstance(answers, list) or len(answers) != ANSWERS:
        got = f"{len(answers)} answers" if isinstance(answers, list) else _shown(answers)
        return f'field "answers": got {got}, expected a list of {ANSWERS}; repeat a single answer {ANSWERS} times'
    for index, answer in enumerate(answers):
        if not isinstance(answer, str):
            return f'field "answers[{index}]" is {_shown(answer)}; expected is a text'
    return None


def _images_problem(fields: Mapping[str, Any]) -> str | None:
    images = fields.get("images", 1)
    return None if images in (1, 2) else f'field "images" is {_shown(images)}; expected is 1, or 2 for pairs of images'


def _one_or_two(fields: Mapping[str, Any]) -> Callable[[Record], str | None]:
    pairs = fields.get("images") == 2

    def misfit(record: Record) -> str | None:
        if (SECOND in record) == pairs:
            return None
        if pairs:
            return f'field "{SECOND}" is missing, and dataset.json says "images": 2; add the second image'
        return f'field "{SECOND}" is there, and dataset.json does not say "images": 2; correct one of them'

    return misfit


def _grounding_problem(record: Record) -> str | None:
    problem = _text_problem(record, "text")
    if problem:
        return problem
    if record.get("box") is None:
        return 'field "box" is missing; add [x1, y1, x2, y2] in pixels'
    if "boxes" in record and (not isinstance(record["boxes"], list) or not record["boxes"]):
        return f'field "boxes" is {_shown(record["boxes"])}; expected is a list of boxes [x1, y1, x2, y2] in pixels'
    for box in all_boxes(record):
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            return f'field "box" is {_shown(box)}; expected are four numbers [x1, y1, x2, y2] in pixels'
    size = []
    for field in ("width", "height"):
        value = record.get(field)
        if value is not None and (not _is_number(value) or value <= 0):
            return f'field "{field}" is {_shown(value)}; expected is a size in pixels'
        size.append(math.inf if value is None else value)
    return next(filter(None, (box_problem(box, *size) for box in all_boxes(record))), None)


def _pair_problem(record: Record) -> str | None:
    problem = _text_problem(record, "text") or (_text_problem(record, "text2") if "text2" in record else None)
    label = record.get("label")
    if problem or label is None:  # a test set whose labels are hidden
        return problem
    if isinstance(label, str) or _is_number(label):
        return None if label != "" else 'field "label" is empty; give the label, or leave the field out'
    return f'field "label" is {_shown(label)}; expected is a text (the name of a class) or a number'


def _label_problem(record: Record) -> str | None:
    return _text_problem(record, "label")


def _classes_problem(fields: Mapping[str, Any]) -> str | None:
    """The problem of ``classes`` (the class names, in the order of the scores) and of ``templates`` (optional)."""
    classes = fields.get("classes")
    if not isinstance(classes, list) or not classes:
        return 'field "classes" is missing or empty; list the names of all classes'
    seen: dict[str, int] = {}
    for number, name in enumerate(classes):
        if not _is_text(name):
            return f'field "classes[{number}]" is {_shown(name)}; expected is a name that is not empty'
        if seen.setdefault(name, number) != number:
            return f'field "classes": {name!r} is there twice (numbers {seen[name]} and {number}); give each one name'
    templates = fields.get("templates", ["{}"])
    if not isinstance(templates, list) or not templates or not all(map(_is_template, templates)):
        return f'field "templates" is {_shown(templates)}; expected are texts with {{}} at the place of the class name'
    return None


def _is_template(value: Any) -> bool:
    return _is_text(value) and "{}" in value


def _known_label(fields: Mapping[str, Any]) -> Callable[[Record], str | None]:
    classes = fields.get("classes")
    known = frozenset(filter(_is_text, classes if isinstance(classes, list) else ()))

    def misfit(record: Record) -> str | None:
        if record["label"] in known:
            return None
        return (
            f'field "label": {_shown(record["label"])} is not in "classes" of dataset.json; correct it or add it there'
        )

    return misfit


def _moment_problem(record: Record) -> str | None:
    problem = _text_problem(record, "text") or _windows_problem(record)
    if problem:
        return problem
    duration = record.get("duration")
    if duration is not None and (not _is_number(duration) or duration <= 0):
        return f'field "duration" is {_shown(duration)}; expected are seconds, above 0'
    for field, low, high in (("scores", 1, 5), ("match", -1, 1), ("saliency", 0, 4), ("clip_ids", 0, 10**6)):
        value = record.get(field)
        if value is not None and not _are_scores(value, low, high, nested=field in ("scores", "saliency")):
            what = f"whole numbers of {low} to {high}"
            return f'field "{field}" is {_shown(value)}; expected is a list with {what} for each clip'
    clips, saliency = record.get("clip_ids"), record.get("saliency")
    if (clips is None) != (saliency is None) or len(clips or ()) != len(saliency or ()):
        return 'fields "clip_ids" and "saliency" must both be there, and be equally long'
    return None


def _windows_problem(record: Record) -> str | None:
    windows = record.get("windows")
    if windows is None:  # a test set whose moments are hidden, or a highlight set
        return None
    if not isinstance(windows, list):
        return f'field "windows" is {_shown(windows)}; expected is a list of [start, end] in seconds'
    for window in windows:
        if not isinstance(window, list) or len(window) != 2 or not all(_is_number(edge) for edge in window):
            return f'field "windows": {_shown(window)}; expected are two numbers [start, end] in seconds'
    return None


def _are_scores(value: Any, low: int, high: int, nested: bool) -> bool:
    """Whether a value is a list of whole numbers in a range, or (nested) a list of such lists that are not empty."""
    if not isinstance(value, list):
        return False
    if nested:
        return all(isinstance(each, list) and each and _are_scores(each, low, high, False) for each in value)
    return all(isinstance(each, int) and not isinstance(each, bool) and low <= each <= high for each in value)


def _is_text(value: Any) -> bool:
    """True for a text that is not blank and can be encoded as UTF-8 (JSON escapes may contain lone surrogates)."""
    if not isinstance(value, str) or not value or value.isspace():
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: Any) -> bool:
    """True for a finite number whose magnitude is plausible for pixels or seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e12 < value < 1e12


def _shown(value: Any) -> str:
    """A value for a message, cut to one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


RECORDS: dict[str, RecordKind] = {
    "retrieval": RecordKind("image", _texts_problem),
    "video_retrieval": RecordKind("video", _video_problem),
    "vqa": RecordKind(
        "image",
        _vqa_problem,
        unique=("id", "question_id"),
        dataset_problem=_images_problem,
        misfit=_one_or_two,
    ),
    "moment_retrieval": RecordKind("video", _moment_problem),
    "grounding": RecordKind("image", _grounding_problem),
    "text": RecordKind(None, _pair_problem),
    "classification": RecordKind("image", _label_problem, dataset_problem=_classes_problem, misfit=_known_label),
}
"""Task -> what its records hold; the ``task`` of a ``dataset.json`` is one of these."""
