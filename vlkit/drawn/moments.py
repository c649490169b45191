"""The demo world's films on disk, in the official files of QVHighlights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from vlkit.data.video.write import write_mp4
from vlkit.drawn.films import RATE, Film, film_frames, sample_film
from vlkit.drawn.videos import FOLDER, SETTINGS
from vlkit.drawn.world import SPLITS, World, generator, mapped
from vlkit.files import write_text

FILM_STREAM = 50
PER_IMAGE = {"train": 0.16, "val": 0.15, "test": 0.1}
"""Films per image of the split: 320 + 30 + 50 in a medium world."""
LEAST = 3
"""Films of a split at least."""


def write_moments(world: World, folder: Path) -> None:
    """Draw films and write ``videos/`` and ``highlight_{train,val,test}_release.jsonl``; the test file has labels."""
    (folder / FOLDER).mkdir(parents=True)
    counts = {split: max(LEAST, round(PER_IMAGE[split] * len(world.images[split]))) for split in SPLITS}
    items = [(split, index) for split in SPLITS for index in range(counts[split])]
    draw = partial(_draw_film, seed=world.seed, folder=folder, side=world.side + world.side % 2)
    lines: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for (split, _), rows in zip(items, mapped(draw, items, world.workers, "draw films", chunk=4), strict=True):
        lines[split] += rows
    first = 1
    for split, rows in lines.items():
        text = "".join(json.dumps({"qid": first + k, **row}) + "\n" for k, row in enumerate(rows))
        write_text(folder / f"highlight_{split}_release.jsonl", text)
        first += len(rows)


def _draw_film(item: tuple[str, int], seed: int, folder: Path, side: int) -> list[dict[str, Any]]:
    split, index = item
    film = sample_film(generator(seed, split, index, FILM_STREAM), training=split == "train")
    name = f"film{SPLITS[split]}{index:04d}"
    write_mp4(folder / FOLDER / f"{name}.mp4", film_frames(film, side), RATE, SETTINGS)
    return described(film, name)


def example_films(folder: Path, count: int, seed: int, side: int) -> list[tuple[str, Film]]:
    """Draw the first films of the test split into ``folder``: (file name, film) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(count):
        film, name = sample_film(generator(seed, "test", index, FILM_STREAM)), f"film{index + 1}.mp4"
        write_mp4(folder / name, film_frames(film, side), RATE, SETTINGS)
        found.append((name, film))
    return found


def described(film: Film, name: str) -> list[dict[str, Any]]:
    """A row for each query, as QVHighlights has them; the clips in order."""
    rows = []
    for query in film.queries:
        scores = dict(sorted(query.saliency))
        rows.append(
            {
                "query": query.text,
                "duration": film.seconds,
                "vid": name,
                "relevant_clip_ids": list(scores),
                "saliency_scores": [list(values) for values in scores.values()],
                "relevant_windows": query.windows,
            }
        )
    return rows
