"""NLVR2 (Suhr et al., ACL 2019): whether a sentence is true of a pair of images; accuracy and consistency."""

from __future__ import annotations

from collections.abc import Mapping

from vlkit.errors import UserError, some


def nlvr2_metrics(predictions: Mapping[str, bool], labels: Mapping[str, bool]) -> dict[str, float]:
    """``accuracy`` and ``consistency`` in percent.

    Consistency is the share of sentences that are judged right for every pair of images they were written about.

    Args:
        predictions: identifier -> judgement, exactly one for each of ``labels``.
        labels: identifier (``split-set-pair-sentence``, such as ``dev-12-0-1``) -> whether the sentence is true.

    Raises:
        UserError: predictions and labels are not of the same examples, there are none, or an identifier has not four
            parts.
    """
    for left, right, what in ((labels, predictions, "no prediction for"), (predictions, labels, "no label for")):
        alone = [name for name in left if name not in right]
        if alone:
            raise UserError(f"predictions: {what} {len(alone)} examples ({some(alone)}); is this another split?")
    if not labels:
        raise UserError("no examples to score; is the split empty?")
    groups: dict[str, bool] = {}
    for name, label in labels.items():
        group = sentence_of(name)
        groups[group] = groups.get(group, True) and predictions[name] == label
    right = sum(predictions[name] == label for name, label in labels.items())
    return {"accuracy": 100 * right / len(labels), "consistency": 100 * sum(groups.values()) / len(groups)}


def sentence_of(identifier: str) -> str:
    """The identifier without its third part, the pair of images: the same for all pairs that share a sentence.

    Raises:
        UserError: it has not four parts.
    """
    parts = identifier.split("-")
    if len(parts) != 4:
        raise UserError(f"identifier {identifier!r}: has not the form split-set-pair-sentence; is this NLVR2?")
    split, images, _, sentence = parts
    return f"{split}-{images}-{sentence}"
