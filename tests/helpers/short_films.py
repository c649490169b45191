"""A few short films in the official files of QVHighlights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlkit.data.video.write import write_mp4
from vlkit.drawn import films
from vlkit.drawn.moments import described
from vlkit.drawn.videos import SETTINGS

COUNTS = {"train": 4, "val": 2, "test": 2}


def write_short_films(folder: Path, patch: pytest.MonkeyPatch, side: int = 32) -> Path:
    """``videos/`` and ``highlight_{train,val,test}_release.jsonl``: films of 10 to 16 seconds."""
    patch.setattr(films, "SHORTEST", 5)
    patch.setattr(films, "LONGEST", 8)
    patch.setattr(films, "EVENT", (1, 3))
    (folder / "videos").mkdir(parents=True)
    number = 0
    for split, count in COUNTS.items():
        rows = []
        for index in range(count):
            film = films.sample_film(np.random.default_rng([number, index]))
            name = f"{split}{index}"
            write_mp4(folder / "videos" / f"{name}.mp4", films.film_frames(film, side), films.RATE, SETTINGS)
            for row in described(film, name):
                number += 1
                rows.append({"qid": number, **row})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"highlight_{split}_release.jsonl").write_text(text)
    return folder
