"""Flickr30k Entities: phrases of sentences and the boxes they refer to, from the official release.

The release is a folder of ``<split>.txt`` (image ids, one per line), ``Sentences/<image>.txt`` (one sentence per line)
and ``Annotations/<image>.xml``. Its splits are not the Karpathy splits.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from vlkit.data.boxes import Record, box_problem
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError, some
from vlkit.files import read_text, text_lines

SPLITS = ("train", "val", "test")

# [/EN#<entity id>/<category>[/<category> ...] word word ...]
_PHRASE = re.compile(r"\[/EN#([^/\]\s]+)((?:/[^/\]\s]+)+) ([^\]]*)\]")


@dataclass(frozen=True)
class Phrase:
    """One annotated phrase that has at least one box.

    Attributes:
        image: image id, as in the file names.
        sentence: zero-based line of the sentence in the image's file.
        entity: entity id, shared by all phrases of the image that refer to the same thing.
        categories: one or more of people, clothing, bodyparts, animals, vehicles, instruments, scene, other.
        text: the words of the phrase.
        boxes: float32 [G, 4], absolute x1, y1, x2, y2 pixels.
        size: (width, height) of the image in pixels, if stated.
    """

    image: str
    sentence: int
    entity: str
    categories: tuple[str, ...]
    text: str
    boxes: np.ndarray
    size: tuple[int, int] | None = None


def read_phrases(folder: str | Path, split: str) -> list[Phrase]:
    """All phrases of a split that have a box, by image, sentence and position in the sentence.

    Phrases without a box are left out: entity 0 ("not visual") and scenes marked ``nobndbox``. The same entity named
    twice in a sentence gives two phrases.

    Raises:
        UserError: a file is missing or cannot be read; the message names file and line.
    """
    folder = Path(folder)
    phrases = []
    for image in _read(folder / f"{split}.txt").split():
        boxes, size = _read_annotation(folder / "Annotations" / f"{image}.xml")
        path = folder / "Sentences" / f"{image}.txt"
        for sentence, line in enumerate(text_lines(_read(path))):
            if line.count("[/EN#") != len(_PHRASE.findall(line)):
                raise UserError(f"{path}: line {sentence + 1}: a phrase is not of the form [/EN#id/category words]")
            phrases += [
                Phrase(image, sentence, entity, tuple(categories[1:].split("/")), text, boxes[entity], size)
                for entity, categories, text in _PHRASE.findall(line)
                if entity in boxes
            ]
    if not phrases:
        raise UserError(f"{folder / f'{split}.txt'}: no phrase of this split has a box; is this the right folder?")
    return phrases


def read(folder: str | Path) -> Source:
    """Every split of the release as grounding records, one per phrase that has a box.

    ``box`` is the smallest box around all boxes of the phrase, ``boxes`` are the single ones; ``categories``,
    ``entity`` and ``sentence`` (a line number) are the phrase's own. The query is the phrase without its sentence.

    Raises:
        UserError: there is no split list, or a file is damaged; the message names the file. Phrases whose box is
            inverted or outside the image are listed in ``wrong`` of the source.
    """
    folder = Path(folder)
    source = Source("flickr30k_entities", "grounding", {}, {"annotations": str(folder.resolve())})
    for split in SPLITS:
        if (folder / f"{split}.txt").exists():
            phrases = read_phrases(folder, split)
            records = source.splits[split] = []
            for row, phrase in enumerate(phrases):
                record, problem = _record(phrase, row), _box_problem(phrase)
                if problem:
                    file = folder / "Annotations" / f"{phrase.image}.xml"
                    source.wrong.append(f"{file}: entity {phrase.entity}: {problem}")
                else:
                    records.append(record)
            source.counts[split] = (len({phrase.image for phrase in phrases}), len(phrases))
    if not source.splits:
        raise UserError(
            f"{folder}: holds none of {', '.join(f'{split}.txt' for split in SPLITS)}; is this the release?"
        )
    return source


def _record(phrase: Phrase, row: int) -> Record:
    boxes = phrase.boxes.astype(float)
    record: Record = {
        "id": f"flickr30k/{phrase.image}/{phrase.sentence}/{row}",
        "image": f"{phrase.image}.jpg",
        "text": phrase.text,
        "box": [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()],
        "boxes": boxes.tolist(),
        "categories": list(phrase.categories),
        "entity": phrase.entity,
        "sentence": phrase.sentence,
    }
    if phrase.size is not None:
        record |= {"width": phrase.size[0], "height": phrase.size[1]}
    return record


def _box_problem(phrase: Phrase) -> str | None:
    size = phrase.size or (math.inf, math.inf)
    return next(filter(None, (box_problem(box, *size) for box in phrase.boxes.astype(float).tolist())), None)


def match_predictions(phrases: Iterable[Phrase], predictions: Iterable[Mapping]) -> list[np.ndarray]:
    """Ranked boxes of every phrase, from predictions made by sentence.

    Args:
        phrases: as :func:`read_phrases` returns them.
        predictions: mappings with ``image_id``, ``sentence_id`` and ``boxes``: for every phrase of the sentence that
            has a box, in text order, its [Q, 4] boxes, best first. If a sentence has several predictions, the first
            counts.

    Returns:
        One float32 [Q, 4] array per phrase, in the order of ``phrases``.

    Raises:
        UserError: a sentence has no prediction, or one with another number of phrases.
    """
    wanted: dict[tuple[str, int], int] = {}
    for phrase in phrases:
        key = (phrase.image, phrase.sentence)
        wanted[key] = wanted.get(key, 0) + 1
    given: dict[tuple[str, int], list] = {}
    for prediction in predictions:
        given.setdefault((str(prediction["image_id"]), int(prediction["sentence_id"])), prediction["boxes"])
    missing = [f"{image} sentence {sentence}" for image, sentence in wanted if (image, sentence) not in given]
    if missing:
        raise UserError(f"predictions: {len(missing)} sentences have none ({some(missing)}); predict every one")
    for (image, sentence), count in wanted.items():
        if len(given[image, sentence]) != count:
            got = len(given[image, sentence])
            raise UserError(f"predictions: image {image}, sentence {sentence}: {got} phrases, expected {count}")
    return [np.asarray(boxes, dtype=np.float32).reshape(-1, 4) for key in wanted for boxes in given[key]]


def _read_annotation(path: Path) -> tuple[dict[str, np.ndarray], tuple[int, int] | None]:
    """Entity id -> float32 [G, 4] boxes (an object with several names gives its box to each of them), and the image's
    width and height.
    """
    try:
        root = ElementTree.fromstring(_read(path))
        boxes: dict[str, list[list[float]]] = {}
        for item in root.iter("object"):
            corners = item.find("bndbox")
            if corners is None:
                continue
            box = [float(cast(Any, corners.find(side)).text) for side in ("xmin", "ymin", "xmax", "ymax")]
            for name in item.findall("name"):
                boxes.setdefault(cast(str, name.text).strip(), []).append(box)
        wide, high = (cast(Any, root.find(f"size/{side}")) for side in ("width", "height"))
        size = None if wide is None or high is None else (int(float(wide.text)), int(float(high.text)))
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: line {error.position[0]}: not valid XML ({error}); is the file complete?") from None
    except (AttributeError, TypeError, ValueError):
        lacks = "an <object> lacks a name or a corner of its box, or <size> a number"
        raise UserError(f"{path}: {lacks}; is the file complete?") from None
    return {entity: np.array(values, dtype=np.float32) for entity, values in boxes.items()}, size


def _read(path: Path) -> str:
    return read_text(path, "expected a Flickr30k Entities folder")
