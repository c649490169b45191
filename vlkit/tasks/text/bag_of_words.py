"""A control without a language model: TF-IDF of words and pairs of words, and a linear model (scikit-learn)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from vlkit.data.records import Record
from vlkit.data.text_task import TextTask
from vlkit.errors import UserError, needs
from vlkit.tasks.text.evaluate import score

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation strengths, of which the validation split chooses one."""
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class BagOfWords:
    """A fitted control.

    Attributes:
        validation, test: metrics of both splits (:func:`vlkit.tasks.text.evaluate.score`).
        strength: the chosen one of :data:`STRENGTHS`.
        parameters: number of weights.
        bytes: features of the training split and weights.
    """

    validation: dict[str, float]
    test: dict[str, float]
    strength: float
    parameters: int
    bytes: int


def fit_bag_of_words(
    task: TextTask, train: Sequence[Record], validation: Sequence[Record], test: Sequence[Record]
) -> BagOfWords:
    """Fit logistic regression (ridge regression for numbers) on the words of a text or of a pair of texts.

    For pairs, the words of each text, the shared words and those of one text alone are features of their own, so that
    the control can use word overlap.

    Args:
        task: the task.
        train, validation, test: records with labels.

    Raises:
        UserError: scikit-learn is not installed, or the training records have a single label.
    """
    with needs("controls", "the bag-of-words control"):
        from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore[reportMissingImports]
        from sklearn.linear_model import LogisticRegression, Ridge  # pyright: ignore[reportMissingImports]
    truth = [task.value(record["label"]) for record in train]
    if len(set(truth)) < 2:
        raise UserError("the training records have a single label; a control has nothing to learn")
    vectorizer = TfidfVectorizer(analyzer=cast(Any, features_of), sublinear_tf=True)
    known, *asked = (
        vectorizer.fit_transform(list(train)),
        vectorizer.transform(list(validation)),
        vectorizer.transform(list(test)),
    )
    found: list[BagOfWords] = []
    for strength in STRENGTHS:
        model: Any = Ridge(alpha=1 / strength) if task.regression else LogisticRegression(C=strength, max_iter=2000)
        model.fit(known, truth)
        chosen, final = (
            score(task, records, [float(value) for value in model.predict(features)])
            for records, features in zip((validation, test), asked, strict=True)
        )
        size = model.coef_.nbytes + known.data.nbytes + known.indices.nbytes + known.indptr.nbytes
        found.append(BagOfWords(chosen, final, strength, int(model.coef_.size), int(size)))
    return max(found, key=lambda one: one.validation["score"])


def features_of(record: Record) -> list[str]:
    """The features of a record, with repetitions: words and pairs of words of each text; for pairs of texts, also the
    words that both have and those that one has alone.
    """
    words = [_WORD.findall(record[key].lower()) for key in ("text", "text2") if key in record]
    found = []
    for number, each in enumerate(words):
        found += [f"{number}:{word}" for word in each]
        found += [f"{number}:{one} {two}" for one, two in itertools.pairwise(each)]
    if len(words) == 2:
        first, second = map(set, words)
        found += [f"both:{word}" for word in first & second]
        found += [f"only0:{word}" for word in first - second] + [f"only1:{word}" for word in second - first]
    return found
