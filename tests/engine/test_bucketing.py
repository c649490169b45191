"""Batches of similar length: every example once, the same order on every process and after every resume."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch

from vlkit.data.manifest import write_dataset
from vlkit.engine.loader import WINDOW, EpochLoader, bucketed, gathered, sample_draw
from vlkit.tasks.retrieval.data import ImageTextPairs

LENGTHS = np.random.default_rng(0).integers(3, 40, size=1003).tolist()


class Numbers:
    """Example i is i; the loader only moves numbers."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> int:
        return index


def make(seed: int = 0, lengths=LENGTHS, **options) -> EpochLoader:
    return EpochLoader(Numbers(), 8, seed, lengths=lengths, **options)


def batches(loader: EpochLoader, start: int, stop: int) -> list[list[int]]:
    return [batch.tolist() for batch in loader.batches(start, stop)]


def padded(order: list[list[int]]) -> int:
    """Tokens of batches that are padded to their longest."""
    return sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in order)


def test_an_epoch_holds_each_example_once():
    loader, plain = make(), make(lengths=None)
    for epoch in range(3):
        span = (epoch * len(loader), (epoch + 1) * len(loader))
        got, expected = (list(chain(*batches(it, *span))) for it in (loader, plain))
        assert len(got) == len(set(got)) == len(loader) * 8
        assert sorted(got) == sorted(expected)  # the same examples are left over as without bucketing
        assert got != expected


def test_batches_hold_similar_lengths_in_no_order():
    loader = make()
    order = batches(loader, 0, len(loader))
    real = sum(LENGTHS[i] for batch in order for i in batch)
    assert padded(order) < 1.35 * real < 1.5 * real < padded(batches(make(lengths=None), 0, len(loader)))
    longest = [max(LENGTHS[i] for i in batch) for batch in order]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3  # no curriculum from short to long
    # Which examples meet is chance: another epoch, other batches.
    again = batches(loader, len(loader), 2 * len(loader))
    assert not {frozenset(batch) for batch in order} & {frozenset(batch) for batch in again}


def test_order_is_a_function_of_seed_and_epoch():
    assert make().order(4) == make().order(4)
    assert make().order(4) != make().order(5) and make().order(4) != make(seed=1).order(4)


def test_resume_in_the_middle():
    whole = batches(make(), 0, 300)
    for start in (1, 124, 125, 126, 299):
        assert batches(make(), start, 300) == whole[start:]
    assert batches(make(workers=2), 120, 135) == whole[120:135]


def test_processes_make_the_one_batch_together():
    one = batches(make(), 100, 150)
    parts = [batches(make(rank=rank, world=2), 100, 150) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == one


@pytest.mark.parametrize("count", [8, 8 * WINDOW, 8 * WINDOW + 8])
def test_windows_that_do_not_fill(count):
    order = np.random.default_rng(1).permutation(count).tolist()
    got = bucketed(order, [LENGTHS[i] for i in order], 8, np.random.default_rng(2))
    assert sorted(got) == list(range(count))


def test_lengths_that_are_drawn_are_those_of_the_example_made():
    """What the loader foresees for an example is what the dataset draws when it makes it."""
    seen = []

    class Draws(Numbers):
        def __getitem__(self, index: int) -> int:
            seen.append(random.choice(range(5)))
            torch.rand(3), np.random.rand()
            return index

    def length(index: int, draw: random.Random) -> int:
        foreseen[index] = draw.choice(range(5))
        return foreseen[index]

    foreseen: dict[int, int] = {}
    loader = EpochLoader(Draws(), 8, 3, lengths=length)
    for epoch in range(2):
        seen.clear()
        order = list(chain(*batches(loader, epoch * len(loader), (epoch + 1) * len(loader))))
        assert seen == [foreseen[i] for i in order] and len(set(seen)) == 5
        assert foreseen[order[0]] == sample_draw(3, epoch, order[0]).choice(range(5))


@pytest.mark.parametrize("every_caption", [True, False])
def test_captions_of_pairs(every_caption, tmp_path):
    """A batch is as long as it should be, with the captions that the dataset then draws."""
    rng = np.random.default_rng(0)
    texts = [[" ".join("a" * rng.integers(1, 30)) for _ in range(1 + i % 5)] for i in range(64)]
    records = [{"id": str(i), "image": "x.png", "texts": t} for i, t in enumerate(texts)]
    data = write_dataset(tmp_path, name="x", task="retrieval", splits={"train": records}, media_root=tmp_path, source=0)
    pairs = ImageTextPairs(data, "train", lambda _: torch.zeros(1), every_caption)
    lengths = pairs.lengths(lambda texts: torch.tensor([len(t.split()) for t in texts]))

    class Captions:
        """The pairs without their images."""

        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, index: int) -> str:
            return pairs.captions[pairs.choose(index)[1]]

    loader = EpochLoader(Captions(), 4, 0, collate=list, lengths=lengths)
    first, second = ([t for b in loader.batches(*span) for t in b] for span in ((0, 8), (len(loader), len(loader) + 8)))
    assert first != second
    for batch in loader.batches(0, len(loader)):
        sizes = [len(text.split()) for text in batch]
        assert sizes == sorted(sizes)


def test_examples_of_a_group_follow_each_other_up_to_a_number() -> None:
    groups = ["a", "b", "a", "c", "a", "b", "a"]
    numbers = [ord(name) for name in groups]
    assert gathered([6, 1, 3, 4, 2, 5, 0], numbers, 3) == [6, 4, 2, 1, 5, 3, 0]
    assert gathered([6, 1, 3, 4, 2, 5, 0], numbers, 1) == [6, 1, 3, 4, 2, 5, 0]


def test_a_batch_of_groups_still_sees_every_example_once() -> None:
    groups = [number // 4 for number in range(64)]
    loader = EpochLoader(
        list(range(64)), 8, seed=0, lengths=[30 + group % 3 for group in groups], groups=groups, together=4
    )
    order = loader.order(1)
    assert sorted(order) == list(range(64)) and order != loader.order(2)
    batches = [order[start : start + 8] for start in range(0, 64, 8)]
    assert all(len({groups[index] for index in batch}) == 2 for batch in batches)
