"""Few-shot sampling with the protocol of CoOp, Tip-Adapter and BlackVIP."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlkit.data.records import Record
from vlkit.errors import UserError

MOST_VALIDATION = 4
"""Most images per class for validation in a few-shot run."""


def few_shot(
    train: Sequence[Record], validation: Sequence[Record], shots: int, seed: int
) -> tuple[list[Record], list[Record]]:
    """The images of a few-shot run: ``shots`` of each class to train on, at most four to validate on.

    One generator serves both draws, the training images first, as in the published code: with a dataset prepared from
    its split file, the same seed draws the same images.

    Args:
        train, validation: records with ``label``, in the order of the split file; ``validation`` may be empty.
        shots: images per class; 0 = all, and all for validation.
        seed: of the draw (1, 2 and 3 in the papers).

    Raises:
        UserError: ``shots`` is negative.
    """
    if shots < 0:
        raise UserError(f"shots {shots}: must be at least 0; 0 = all images")
    if shots == 0:
        return list(train), list(validation)
    draw = random.Random(seed)
    return sample_shots(train, shots, draw), sample_shots(validation, min(shots, MOST_VALIDATION), draw)


def sample_shots(records: Sequence[Record], shots: int, draw: random.Random) -> list[Record]:
    """``shots`` records of each class, drawn without replacement; all of a class that has fewer.

    Classes come in the order of their first record, the records of a class in the order drawn.
    """
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(record["label"], []).append(record)
    return [record for own in members.values() for record in (draw.sample(own, shots) if len(own) >= shots else own)]
