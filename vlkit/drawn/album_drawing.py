"""Draw the album of the web demo and describe what is in it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from vlkit.drawn.album import FILE, FILMS, IMAGES, AlbumClip, AlbumFilm, AlbumImage
from vlkit.drawn.moments import example_films
from vlkit.drawn.refcoco import referred
from vlkit.drawn.videos import draw_videos
from vlkit.drawn.vqa import ask
from vlkit.drawn.world import Box, Image, draw_world, split_folder
from vlkit.files import write_json

IMAGE_COUNT, CLIP_COUNT, FILM_COUNT = 80, 16, 3
IMAGE_SIDE, CLIP_SIDE = 256, 192
"""Pixels. Models resize inputs to their own size; their training datasets have 96."""
TRAINED_SIDE = 96


def draw(folder: Path) -> None:
    """Draw an album into an empty folder."""
    images = _draw_images(folder)
    videos = draw_videos(0, {"train": 0, "test": CLIP_COUNT}, folder, CLIP_SIDE)
    clips = [
        asdict(AlbumClip(Path(video.file_name).name, video.clip.seconds, list(video.sentences))) for video in videos
    ]
    films = [
        asdict(AlbumFilm(name, [(query.text, [(s, e) for s, e in query.windows]) for query in film.queries]))
        for name, film in example_films(folder / FILMS, FILM_COUNT, 0, CLIP_SIDE)
    ]
    write_json(folder / FILE, json.loads(json.dumps({"pictures": images, "clips": clips, "films": films})))


def _draw_images(folder: Path) -> list[dict[str, Any]]:
    """Draw the first test images into their folder and describe them."""
    world = draw_world(0, {"test": IMAGE_COUNT}, folder, IMAGE_SIDE)
    (folder / split_folder("test")).rename(folder / IMAGES)
    for number, image in enumerate(world.images["test"]):
        (folder / IMAGES / image.file_name).rename(folder / IMAGES / _name(number))
    return [asdict(_describe(number, p, world.seed)) for number, p in enumerate(world.images["test"])]


def _name(number: int) -> str:
    return f"image{number + 1:02d}.jpg"


def _describe(number: int, image: Image, seed: int) -> AlbumImage:
    # The limit for hardly visible things was chosen for the size of the datasets.
    scale = (TRAINED_SIDE / IMAGE_SIDE) ** 2
    small = replace(image, areas=tuple(area * scale for area in image.areas))
    questions = [
        (question["question"], annotation["multiple_choice_answer"]) for question, annotation in ask(small, seed)
    ]
    phrases = [
        (phrase.words, cast(Box, image.boxes[thing]))
        for thing, called in referred(small, seed)
        for phrase in called[:1]
    ]
    return AlbumImage(_name(number), list(image.captions), questions, phrases)
