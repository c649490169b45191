"""Films of the demo world: what they show is where the annotations say."""

from __future__ import annotations

import numpy as np
import pytest

from vlkit.drawn import films
from vlkit.drawn.films import CLIP_SECONDS, EVENT, LONGEST, RATE, SHORTEST, Film, film_frames, sample_film
from vlkit.drawn.moments import described


@pytest.fixture(scope="module")
def drawn() -> list[Film]:
    return [sample_film(np.random.default_rng([0, index])) for index in range(40)]


def test_films_have_events_that_do_not_overlap(drawn: list[Film]) -> None:
    assert (
        all(30 <= film.seconds <= 90 for film in drawn)
        and SHORTEST * CLIP_SECONDS == 30
        and LONGEST * CLIP_SECONDS == 90
    )
    for film in drawn:
        ends = [0, *(shot.first + shot.clips for shot in film.shots)]
        assert all(shot.first >= end for shot, end in zip(film.shots, ends, strict=False))
        assert ends[-1] <= film.clips and all(
            EVENT[0] <= shot.clips <= min(EVENT[1], film.clips // 3) for shot in film.shots
        )
    assert sum(len(film.queries) for film in drawn) > len(drawn)
    assert any(len(query.windows) > 1 for film in drawn for query in film.queries)
    distractors = [
        film for film in drawn if {s.actor for s in film.shots} - {s.actor for q in film.queries for s in q.shots}
    ]
    assert len(distractors) > 5


def test_the_annotations_follow_qvhighlights(drawn: list[Film]) -> None:
    very_good = 0
    for film in drawn:
        for row in described(film, "film"):
            inside = {c for start, end in row["relevant_windows"] for c in range(start // 2, end // 2)}
            assert set(row["relevant_clip_ids"]) == inside and row["relevant_windows"] == sorted(
                row["relevant_windows"]
            )
            assert all(len(scores) == 3 and set(scores) <= {1, 2, 3, 4} for scores in row["saliency_scores"])
            very_good += any(4 in scores for scores in row["saliency_scores"])
    assert very_good > len(drawn) / 2


def test_frames_change_only_while_something_happens(drawn: list[Film]) -> None:
    film = next(film for film in drawn if film.shots[0].first > 1)
    frames = dict(film_frames(film, 32))
    per_clip = CLIP_SECONDS * RATE
    assert len(frames) == film.clips * per_clip
    idle, shot = frames[0], film.shots[0]
    assert np.array_equal(frames[shot.first * per_clip - 1], idle)
    seen = [
        np.abs(frames[n].astype(int) - idle).max()
        for n in range(shot.first * per_clip, (shot.first + shot.clips) * per_clip)
    ]
    assert min(seen) > 20  # the actor is there from the first frame to the last


def test_sentences_of_a_training_film_describe_every_actor_twice() -> None:
    for index in range(10):
        film = sample_film(np.random.default_rng([1, index]), training=True)
        asked = sorted(query.shots[0].actor for query in film.queries)
        assert asked == sorted(2 * list({shot.actor for shot in film.shots}))
        assert film.shots == sample_film(np.random.default_rng([1, index])).shots


def test_a_seed_gives_the_same_film() -> None:
    one, two, other = (sample_film(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == two and one != other and films.HIGHEST == 4
