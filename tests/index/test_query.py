"""Query arithmetic: the grammar, and the vector of a sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlkit.errors import UserError
from vlkit.index.query import Term, file_term, query_vector, text_terms


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("a plane on a lake", [(1, "a plane on a lake")]),
        ("dog + snow - car", [(1, "dog"), (1, "snow"), (-1, "car")]),
        ("- car", [(-1, "car")]),
        ("2*dog - .5 * a cat", [(2, "dog"), (-0.5, "a cat")]),
        ("t-shirt + C++ at -5 degrees", [(1, "t-shirt"), (1, "C++ at -5 degrees")]),
        ("-5", [(1, "-5")]),
        ('"black + white" - 0.5*"a - b"', [(1, "black + white"), (-0.5, "a - b")]),
        ('a sign that says "stop" - red', [(1, 'a sign that says "stop"'), (-1, "red")]),
        ('"2*dog"', [(1, "2*dog")]),
        ("*x", [(1, "*x")]),
        ("16:9", [(1, "16:9")]),
        ("dog\n+\tsnow", [(1, "dog"), (1, "snow")]),
    ],
)
def test_signs_between_blanks_split_a_query(query, terms):
    assert [(term.weight, term.value) for term in text_terms(query)] == terms


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ('""', "is empty"),
        ("dog - - cat", "a sign without a term"),
        ("+ - x", "a sign"),
        ("-", "a sign"),
    ],
)
def test_a_query_without_terms_is_refused(query, part):
    with pytest.raises(UserError, match=part):
        text_terms(query)


def test_files_take_signs_and_weights_unless_they_are_named_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("2*x.png").touch()
    cases = {
        "a b.png": (1, "a b.png"),
        "-a.png": (-1, "a.png"),
        "- 0.5*a.png": (-0.5, "a.png"),
        "2*x.png": (1, "2*x.png"),
    }
    for word, expected in cases.items():
        term = file_term(word, "image")
        assert (term.weight, str(term.value), term.kind) == (*expected, "image")


class Axes:
    """A pipeline whose texts and images are unit vectors along axes."""

    def embed_texts(self, texts):
        return np.eye(4, dtype=np.float32)[[int(text) for text in texts]]

    embed_images = embed_texts


def test_the_vector_is_the_weighted_sum_at_unit_norm():
    terms = [Term("0"), Term("1", -2.0), Term("2", 2.0, "image"), Term("0", 3.0, "image")]
    found = query_vector(terms, Axes())
    assert found.shape == (1, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.array([4, -2, 2, 0]) / np.sqrt(24), rtol=1e-6)
    with pytest.raises(UserError, match="cancel out"):
        query_vector(text_terms("1 - 1"), Axes())
    with pytest.raises(UserError, match="cancel out"):
        query_vector(text_terms("0*1"), Axes())
