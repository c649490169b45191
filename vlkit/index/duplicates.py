"""Near-identical items of an index: equal content, or vectors with a high cosine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlkit.index.files import Item

BLOCK = 1024


class Copy(NamedTuple):
    """A member of a group: the item, its cosine with the first of the group, and whether the content is the same."""

    item: Item
    score: float
    identical: bool


def duplicate_groups(
    items: Sequence[Item],
    vectors: np.ndarray,
    threshold: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Copy]]:
    """Groups of at least two near-identical items, each led by the first of its items.

    Every member is near the first one, so a group cannot drift through a chain of small changes. Exact: every item is
    compared with the first of all groups before it, in blocks (time up to quadratic, memory linear in n).

    Args:
        items: n items; those with the same ``digest`` are identical.
        vectors: float32 [n, D], unit norm.
        threshold: smallest cosine with the first item of a group, 0 ... 1.
        progress: called with the numbers of items done and in all, after each block.

    Returns:
        The groups in the order of their first items; members in descending order of score.
    """
    first_with: dict[str, int] = {}
    equal = np.array([first_with.setdefault(item.digest or f"\0{row}", row) for row, item in enumerate(items)], int)
    distinct = np.flatnonzero(equal == np.arange(len(items)))
    leader, score = equal.copy(), np.ones(len(items), np.float32)
    leaders = np.empty(0, int)
    for start in range(0, len(distinct), BLOCK):
        rows = distinct[start : start + BLOCK]
        leader[rows], score[rows] = _nearest(vectors, rows, leaders, threshold)
        fresh = rows[leader[rows] == rows]
        _group_within(vectors, fresh, threshold, leader, score)
        leaders = np.concatenate([leaders, fresh[leader[fresh] == fresh]])
        progress(min(start + BLOCK, len(distinct)), len(distinct))
    groups: dict[int, list[Copy]] = {}
    for row, item in enumerate(items):
        head = int(leader[equal[row]])
        groups.setdefault(head, []).append(Copy(item, float(score[equal[row]]), bool(equal[row] == head)))
    return [[group[0], *sorted(group[1:], key=lambda copy: -copy.score)] for group in groups.values() if group[1:]]


def _nearest(
    vectors: np.ndarray, rows: np.ndarray, leaders: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest leader of each row and its cosine; the row itself and 1 where none reaches the threshold."""
    best, found = np.full(len(rows), threshold, np.float32), rows.copy()
    own = vectors[rows]
    for start in range(0, len(leaders), BLOCK):
        part = leaders[start : start + BLOCK]
        scores = own @ vectors[part].T
        top = scores.argmax(1)
        highest = np.take_along_axis(scores, top[:, None], 1)[:, 0]
        better = highest >= best
        best[better], found[better] = highest[better], part[top[better]]
    return found, np.where(found == rows, np.float32(1), best)


def _group_within(
    vectors: np.ndarray, rows: np.ndarray, threshold: float, leader: np.ndarray, score: np.ndarray
) -> None:
    """Group the rows of one block that no earlier leader is near to; writes ``leader`` and ``score``."""
    scores = vectors[rows] @ vectors[rows].T
    leads = np.zeros(len(rows), bool)
    for place, row in enumerate(rows):
        among = np.where(leads, scores[place], -np.inf)
        near = int(among.argmax())
        if among[near] >= threshold:
            leader[row], score[row] = rows[near], among[near]
        else:
            leads[place] = True
