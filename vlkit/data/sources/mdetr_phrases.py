"""Phrases of Flickr30k Entities in MDETR's form: ``final_flickr_{separateGT,mergedGT}_{train,val,test}.json``.

COCO's layout with one image record per sentence. The boxes of a sentence state which characters name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlkit.data.boxes import Record
from vlkit.data.sources.annotated_boxes import Placed, annotated_box, annotations_by_image, refuse_strays
from vlkit.data.sources.common import take, take_id
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError
from vlkit.files import read_json

_NAME = re.compile(r".+_(train|val|test)")

Span = tuple[int, int]
"""``[begin, end)``, characters of a sentence."""


def read(files: Sequence[str | Path]) -> Source:
    """Read MDETR's files, one per split: one record per phrase that has a box, in the order of the sentence.

    ``box`` is the smallest box around all boxes of the phrase, ``boxes`` are the single ones (mergedGT has one). A
    sentence's phrases are its ``tokens_positive_eval``; where that is missing, the spans that its boxes state.

    Raises:
        UserError: a file name contains no split, a split has two files, a span lies outside its sentence, or a box
            belongs to no phrase; the message names the file and the record. Impossible boxes are listed in ``wrong``
            of the source.
    """
    given: dict[str, Path] = {}
    for path in map(Path, files):
        match = _NAME.fullmatch(path.stem)
        if not match:
            raise UserError(f"{path}: its name contains no split; rename it, as in final_flickr_separateGT_train.json")
        if match[1] in given:
            raise UserError(f'{path}: split "{match[1]}" comes from {given[match[1]].name} too; give one per split')
        given[match[1]] = path
    inputs = {"mdetr": [str(path.resolve()) for path in given.values()]}
    source = Source("flickr30k_entities", "grounding", {}, inputs)
    for split in (name for name in ("train", "val", "test") if name in given):
        records = source.splits[split] = []
        for record, wrong in _phrases(read_json(given[split]), f"{given[split]}"):
            if wrong:
                source.wrong += [wrong]
            else:
                records.append({**record, "id": f"{record['id']}/{len(records)}"})
        if not records and not source.wrong:
            raise UserError(f"{given[split]}: no phrase has a box; is this the right file?")
        source.counts[split] = (len({record["image"] for record in records}), len(records))
    return source


def _phrases(content: Any, path: str) -> Iterator[tuple[Record, str | None]]:
    """Record of every phrase, and what is wrong with one of its boxes."""
    found = annotations_by_image(content, path)
    for index, sentence in enumerate(take(content, "images", list, path)):
        where = f"{path}: images[{index}]"
        yield from _of_sentence(sentence, found.pop(take_id(sentence, "id", where), []), where)
    refuse_strays(found, path)


def _of_sentence(sentence: Any, annotations: list[Placed], where: str) -> Iterator[tuple[Record, str | None]]:
    text = take(sentence, "caption", str, where)
    size = {side: take(sentence, side, (int, float), where) for side in ("width", "height")}
    image, number = take(sentence, "file_name", str, where), take_id(sentence, "sentence_id", where)
    boxes = [(_spans(a, "tokens_positive", text, at), annotated_box(a, size, at), at) for at, a in annotations]
    if sentence.get("tokens_positive_eval") is None:
        phrases = sorted({(span,) for spans, _, _ in boxes for span in spans})
    else:
        listed = take(sentence, "tokens_positive_eval", list, where)
        named = [{"tokens_positive_eval": spans} for spans in listed]
        phrases = [_spans(one, "tokens_positive_eval", text, f"{where}: phrase {i}") for i, one in enumerate(named)]
    all_spans = {span for spans in phrases for span in spans}
    for spans, _, at in boxes:
        if all_spans.isdisjoint(spans):
            raise UserError(
                f'{at}: field "tokens_positive": {list(spans)} is no phrase of {where}; correct one of them'
            )
    for spans in phrases:
        own = [box for of, box, _ in boxes if not set(spans).isdisjoint(of)]
        if own:  # as from the release, a phrase without a box is left out
            corners = [box for box, _ in own]
            left, top, right, bottom = zip(*corners, strict=True)
            yield (
                {
                    "id": f"flickr30k/{Path(image).stem}/{number}",
                    "image": image,
                    "text": " ".join(" ".join(text[begin:end] for begin, end in spans).split()),
                    "box": [min(left), min(top), max(right), max(bottom)],
                    "boxes": corners,
                    "sentence": number,
                    **size,
                },
                next((problem for _, problem in own if problem), None),
            )


def _spans(holder: Any, field: str, text: str, where: str) -> tuple[Span, ...]:
    """The spans in a field of a box or phrase; none is empty or outside ``text``."""
    spans = take(holder, field, list, where)
    for span in spans:
        whole = isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)
        if not whole or not 0 <= span[0] < span[1] <= len(text):
            raise UserError(
                f'{where}: field "{field}": {str(span)[:40]} is no span of {text!r}; expected is [begin, end), in '
                "characters"
            )
    if not spans:
        raise UserError(f'{where}: field "{field}" is empty; give the characters of the phrase')
    return tuple((begin, end) for begin, end in spans)
