"""The demo world in the official files of VQA v2."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from vlkit.drawn.answers import ten_answers
from vlkit.drawn.coco import INFO, LICENSES
from vlkit.drawn.questions import questions
from vlkit.drawn.refcoco import SMALLEST
from vlkit.drawn.world import Image, World, generator, mapped, split_folder
from vlkit.files import write_text

STREAM = 3
"""Stream number for this use of an image's generators (:func:`vlkit.drawn.world.generator`)."""
QUESTION_TYPES = (
    "how many",
    "what is the",
    "what color is the",
    "is the",
    "is there a",
    "what color are the",
    "where is the",
    "is there",
    "what is on the",
    "can you",
    "are there",
    "which",
    "what is",
    "what animal is",
    "how",
    "what",
)
"""VQA v2 sorts questions by their first words; these are its types that occur here."""

Entry = dict[str, Any]


def write_vqa(world: World, folder: Path) -> None:
    """Write the questions and the annotations of every split into ``folder``."""
    for split, images in world.images.items():
        name = split_folder(split)
        asked = partial(ask, seed=world.seed)
        pairs = [pair for found in mapped(asked, images, world.workers, f"ask about {split}") for pair in found]
        head = {
            "info": {**INFO, "description": "vlkit demo world: questions", "version": "2.0"},
            "license": {"url": LICENSES[0]["url"], "name": LICENSES[0]["name"]},
            "data_subtype": name,
            "data_type": "mscoco",
        }
        asked_file = {**head, "task_type": "Open-Ended", "questions": [question for question, _ in pairs]}
        write_text(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", json.dumps(asked_file) + "\n")
        answered_file = {**head, "annotations": [annotation for _, annotation in pairs]}
        write_text(folder / f"v2_mscoco_{name}_annotations.json", json.dumps(answered_file) + "\n")


def ask(image: Image, seed: int) -> list[tuple[Entry, Entry]]:
    """Questions about an image with their annotations; none if a thing is hardly visible."""
    if min(image.areas) < SMALLEST:
        return []
    rng = generator(seed, image.split, image.image_id, STREAM)
    pairs = []
    for number, question in enumerate(questions(image.scene, rng)):
        ids = {"image_id": image.image_id, "question_id": image.image_id * 1000 + number}
        annotation = {
            "question_type": question_type(question.text),
            "multiple_choice_answer": question.answer,
            "answers": ten_answers(question, rng),
            "answer_type": question.answer_type,
        }
        pairs.append(({**ids, "question": question.text}, {**annotation, **ids}))
    return pairs


def question_type(text: str) -> str:
    """The longest of ``QUESTION_TYPES`` that a question begins with."""
    words = text.lower()
    return max((kind for kind in QUESTION_TYPES if words.startswith(kind)), key=len, default="none of the above")
