"""Groups of near-identical items, compared with a plain loop; the kind of index by size."""

from __future__ import annotations

import numpy as np
import pytest

from vlkit.index import duplicates
from vlkit.index.approximate import auto_factory
from vlkit.index.duplicates import duplicate_groups
from vlkit.index.files import Item


def near_copies(count: int, copies: int, seed: int = 0) -> np.ndarray:
    """Random unit vectors, of which the last ``copies`` are slightly changed earlier ones."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 32))
    vectors[-copies:] = vectors[rng.integers(0, count - copies, copies)] + 0.02 * rng.normal(size=(copies, 32))
    vectors = vectors[rng.permutation(count)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def one_by_one(vectors: np.ndarray, threshold: float) -> list[set[str]]:
    leaders: dict[int, set[str]] = {}
    for row, vector in enumerate(vectors):
        scores = {lead: float(vectors[lead] @ vector) for lead in leaders}
        near = max(scores, key=scores.get, default=None)
        if near is not None and scores[near] >= threshold:
            leaders[near].add(str(row))
        else:
            leaders[row] = {str(row)}
    return [group for group in leaders.values() if len(group) > 1]


@pytest.mark.parametrize("block", [7, 50, 1000])
def test_groups_are_those_of_a_plain_loop(block, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    vectors, done = near_copies(200, 60), []
    items = [Item(str(row)) for row in range(200)]
    found = duplicate_groups(items, vectors, 0.97, lambda *numbers: done.append(numbers))
    assert [{copy.item.id for copy in group} for group in found] == one_by_one(vectors, 0.97)
    assert len(found) > 20 and done[-1] == (200, 200)
    for group in found:
        lead = vectors[int(group[0].item.id)]
        scores = [copy.score for copy in group]
        assert scores[1:] == sorted(scores[1:], reverse=True) and not any(copy.identical for copy in group[1:])
        np.testing.assert_allclose(scores, [vectors[int(copy.item.id)] @ lead for copy in group], atol=1e-5)


def test_equal_content_is_found_whatever_the_threshold():
    items = [Item("a", digest="x"), Item("b", digest="y"), Item("c", digest="x"), Item("d"), Item("e")]
    (group,) = duplicate_groups(items, np.eye(5, dtype=np.float32)[[0, 1, 0, 3, 4]], 1.0)
    assert [(copy.item.id, copy.score, copy.identical) for copy in group] == [("a", 1, True), ("c", 1, True)]
    assert duplicate_groups([], np.empty((0, 5), np.float32), 0.9) == []


def test_a_copy_of_a_copy_is_in_the_group():
    angle = np.deg2rad(10)
    vectors = np.array([[1, 0], [np.cos(angle), np.sin(angle)], [np.cos(angle), np.sin(angle)]], np.float32)
    items = [Item("a", digest="1"), Item("b", digest="2"), Item("c", digest="2")]
    (group,) = duplicate_groups(items, vectors, 0.9)
    assert [copy.item.id for copy in group] == ["a", "b", "c"] and not group[2].identical
    assert duplicate_groups(items, vectors, 0.99)[0][0].item.id == "b"


def test_the_kind_of_index_follows_the_size():
    assert [auto_factory(count) for count in (0, 50_000, 60_000, 1_000_000)] == [
        "Flat",
        "Flat",
        "IVF1024,Flat",
        "IVF4096,Flat",
    ]
