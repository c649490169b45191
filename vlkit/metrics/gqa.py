"""GQA: accuracy of binary and of open questions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from vlkit.metrics.vqa import accuracy_by_group

STRUCTURE = {"verify": "binary", "logical": "binary", "choose": "binary", "compare": "binary", "query": "open"}
"""Structural type of a question -> whether it is binary or open, as in the official script."""


def binary_and_open(scores: Mapping[Hashable, float], types: Mapping[Hashable, str | None]) -> dict[str, float]:
    """``accuracy_binary`` and ``accuracy_open`` in percent; empty unless every question has a GQA type.

    Args:
        scores: question id -> 1 or 0.
        types: question id -> structural type (verify, logical, choose, compare, query).
    """
    if not set(types.values()) <= STRUCTURE.keys():
        return {}
    groups = accuracy_by_group(scores, {key: STRUCTURE[kind] for key, kind in types.items() if kind})
    return {f"accuracy_{name}": value for name, value in groups.items()}
