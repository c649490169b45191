"""The demo world in the official files of RefCOCO, and in the fine-tuning files of MDETR."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

from vlkit.drawn.coco import CATEGORIES, CATEGORY_IDS, INFO, LICENSES, annotation_id, image_record, instance_records
from vlkit.drawn.expressions import expressions
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.refer import Phrase
from vlkit.drawn.world import Image, World, generator, mapped
from vlkit.files import whole_file, write_text

STREAM = 4
"""Stream number for this use of an image's generators (:func:`vlkit.drawn.world.generator`)."""
TARGETS, SENTENCES = 3, 2
"""Maximum number of things referred to per image, and of sentences for each."""
SMALLEST = 40
"""Minimum number of visible pixels of a thing that is referred to."""
LIVING = frozenset(name for name, kind in KINDS.items() if kind.group in ("animal", "plant")) | {"snowman"}
"""Kinds in testA; testB has the images without any of them (in RefCOCO: people, and images of other things)."""
SPLITS = ("train", "val", "testA", "testB")

Named = list[tuple[int, list[Phrase]]]
"""Things of one image (their numbers in the scene) with their expressions."""


def write_refcoco(world: World, folder: Path) -> None:
    """Write ``refs(unc).p``, ``instances.json`` and ``finetune_refcoco_*.json`` into ``folder``.

    Images are named as in RefCOCO, without a folder: ``COCO_train2024_000000100001.jpg``.
    """
    images = [image for split in world.images.values() for image in split]
    found: list[Named] = list(mapped(partial(referred, seed=world.seed), images, world.workers, "refer to things"))
    instances = {
        "info": {**INFO, "description": "vlkit demo world: referring expressions"},
        "licenses": LICENSES,
        "images": [image_record(image, world.side) for image in images],
        "annotations": [record for image in images for record in instance_records(image, world.side)],
        "categories": CATEGORIES,
    }
    write_text(folder / "instances.json", json.dumps(instances) + "\n")
    # Fresh texts and numbers: pickle writes an object that occurs twice as a reference, so its bytes would depend on
    # which equal values happen to be one object.
    refs = json.loads(json.dumps(official_refs(images, found)))
    with whole_file(folder / "refs(unc).p") as temporary:
        temporary.write_bytes(pickle.dumps(refs, protocol=2))
    for split, content in finetune_files(images, found, instances).items():
        write_text(folder / f"finetune_refcoco_{split}.json", json.dumps(content) + "\n")


def split_of(image: Image) -> str:
    """Split of RefCOCO that an image's references are in."""
    if image.split != "test":
        return image.split
    return "testA" if any(thing.kind in LIVING for thing in image.scene.things) else "testB"


def referred(image: Image, seed: int) -> Named:
    """Things of an image with their expressions, without those that are hardly visible or ambiguous."""
    rng = generator(seed, image.split, image.image_id, STREAM)
    things = image.scene.things
    living = split_of(image) == "testA"
    found = []
    for number in rng.permutation(len(things)):
        i = int(number)
        if image.areas[i] < SMALLEST or (living and things[i].kind not in LIVING):
            continue
        phrases = expressions(image.scene, i, rng, SENTENCES)
        if phrases:
            found.append((i, phrases))
        if len(found) == TARGETS:
            break
    return found


def official_refs(images: list[Image], found: list[Named]) -> list[dict[str, Any]]:
    """The content of ``refs(unc).p``, one record per thing; ids count from 0."""
    refs: list[dict[str, Any]] = []
    sent_id = 0
    for image, things in zip(images, found, strict=True):
        for i, phrases in things:
            sentences = []
            for phrase in phrases:
                words, raw = phrase.words, raw_form(phrase.words, sent_id)
                sentences.append({"tokens": words.split(), "raw": raw, "sent_id": sent_id, "sent": words})
                sent_id += 1
            refs.append(
                {
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "file_name": image.file_name.replace(".jpg", f"_{i}.jpg"),
                    "ann_id": annotation_id(image, i),
                    "ref_id": len(refs),
                    "image_id": image.image_id,
                    "split": split_of(image),
                    "sentences": sentences,
                    "category_id": CATEGORY_IDS[image.scene.things[i].kind],
                }
            )
    return refs


def raw_form(words: str, number: int) -> str:
    """How an annotator may have typed an expression: as it is, with a capital, with a full stop."""
    return (words, words, words.capitalize(), f"{words.capitalize()}.")[number % 4]


def finetune_files(images: list[Image], found: list[Named], instances: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Split -> content of MDETR's file: one image record and one annotation per expression; ids continue over the
    splits.
    """
    boxes = {record["id"]: record for record in instances["annotations"]}
    head = {key: instances[key] for key in ("info", "licenses", "categories")}
    files: dict[str, dict[str, Any]] = {split: {**head, "images": [], "annotations": []} for split in SPLITS}
    side, number = instances["images"][0]["width"], 0
    for split in SPLITS:
        for image, things in zip(images, found, strict=True):
            if split_of(image) != split:
                continue
            for i, phrases in things:
                for phrase in phrases:
                    record, annotation = _finetune_pair(image, phrase, boxes[annotation_id(image, i)], number, side)
                    files[split]["images"].append(record)
                    files[split]["annotations"].append(annotation)
                    number += 1
    return files


def _finetune_pair(
    image: Image, phrase: Phrase, instance: dict[str, Any], number: int, side: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    begin = phrase.words.index(phrase.head)
    spans = [[begin, begin + len(phrase.head)]]
    others = [[len(phrase.words) - len(phrase.other), len(phrase.words)]] if phrase.other else []
    record = {
        "file_name": image.file_name,
        "height": side,
        "width": side,
        "id": number,
        "original_id": image.image_id,
        "caption": phrase.words,
        "dataset_name": "refcoco",
        "tokens_negative": others,
    }
    copied = {key: instance[key] for key in ("area", "iscrowd", "category_id", "bbox")}
    annotation = {**copied, "image_id": number, "id": number, "original_id": instance["id"], "tokens_positive": spans}
    return record, annotation
