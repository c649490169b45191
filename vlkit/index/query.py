"""Query arithmetic: ``dog + snow - car`` becomes one vector, the weighted sum of the unit vectors of its terms.

    query = ["+ " | "- "] term { " + " term | " - " term }
    term  = [NUMBER "*"] text | [NUMBER "*"] '"' text '"'

A sign counts only with a blank on both sides (at the start of the query, behind it): ``t-shirt``, ``C++`` and ``-5``
are texts. Within double quotes everything is text: ``"black + white" - 0.5*car``. The semantics are those of rclip.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlkit.errors import UserError

_SIGN = re.compile(r"\s*([+-])\s+")
_TERM = re.compile(
    r"(?:(?P<weight>\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?"
    r'(?:"(?P<quoted>[^"]*)"|(?P<plain>.+?))(?=\s+[+-]\s|\s*\Z)',
    re.DOTALL,
)


@dataclass(frozen=True)
class Term:
    """One summand of a query.

    Attributes:
        value: a text, or an image or video as the pipeline takes it.
        weight: factor of its unit vector; negative = less like this.
        kind: what ``value`` is.
    """

    value: Any
    weight: float = 1.0
    kind: Literal["text", "image", "video"] = "text"

    def as_json(self) -> dict[str, Any]:
        """The term for a results file."""
        return {"weight": self.weight, self.kind: str(self.value)}


def text_terms(query: str) -> list[Term]:
    """The terms of a query of texts; the module docstring has the grammar.

    Raises:
        UserError: the query is empty, or a sign has no term.
    """
    terms, place, text = [], 0, query.strip()
    while True:
        sign = _SIGN.match(text, place) if terms or text[:1] in ("+", "-") else None
        place = sign.end() if sign else place
        found = _TERM.match(text, place)
        value = "" if found is None else found["plain"] if found["quoted"] is None else found["quoted"]
        if found is None or not value.strip():
            raise UserError("is empty; say what to look for")
        if found["quoted"] is None and re.match(r"[+-](\s|\Z)", value):
            raise UserError(f"{query!r}: a sign without a term; put a text with such signs in double quotes")
        weight = float(found["weight"] or 1) * (-1 if sign and sign[1] == "-" else 1)
        terms.append(Term(value, weight))
        place = found.end()
        if not text[place:].strip():
            return terms


def file_term(word: str, kind: Literal["image", "video"]) -> Term:
    """A file with an optional sign and weight: ``beach.jpg``, ``-car.jpg``, ``-0.5*car.jpg``.

    A file that has the whole word as its name is that file.
    """
    found = re.fullmatch(r"([+-]?)\s*(?:(\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?(.+)", word, re.DOTALL)
    if Path(word).exists() or found is None:
        return Term(Path(word), kind=kind)
    return Term(Path(found[3]), float(found[2] or 1) * (-1 if found[1] == "-" else 1), kind)


def query_vector(terms: Sequence[Term], pipeline: Any) -> np.ndarray:
    """The vector to search by: the sum of weighted unit vectors, scaled to unit norm, so that scores are cosines.

    Args:
        terms: at least one.
        pipeline: has ``embed_texts``, ``embed_images`` or ``embed_videos`` for the kinds of the terms.

    Returns:
        float32 [1, D].

    Raises:
        UserError: the terms cancel out, or a file cannot be read.
    """
    vectors: dict[str, np.ndarray] = {}
    for kind in dict.fromkeys(term.kind for term in terms):
        vectors[kind] = getattr(pipeline, f"embed_{kind}s")([term.value for term in terms if term.kind == kind])
    weights = {kind: [term.weight for term in terms if term.kind == kind] for kind in vectors}
    total = np.sum([np.asarray(weights[kind], np.float32) @ vectors[kind] for kind in vectors], axis=0)
    size = float(np.linalg.norm(total))
    if size < 1e-4 * sum(abs(term.weight) for term in terms) or size == 0:
        raise UserError("the terms cancel out; change a term or a weight")
    return (total / size).astype(np.float32)[None]


def asked_for(**queries: Sequence[str]) -> dict[str, str | list[str]]:
    """What was asked for, for a results file: kind -> the query, or all of them if there are several."""
    return {kind: values[0] if len(values) == 1 else list(values) for kind, values in queries.items() if values}
