"""Blocks of frozen towers by torch.compile: the same numbers, one compilation for all blocks, only without gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from helpers.scripts import call, refuse
from helpers.towers import SPATIAL, TOWERS
from vlkit.encoders import staged
from vlkit.encoders.blocks.anatomy import Opaque

TRAIN = "tasks/retrieval/train.py"


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts compiled graphs; they run as they are, so that a test takes no compiler's time."""
    counts, compile_ = CompileCounter(), torch.compile
    torch._dynamo.reset()
    staged._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=counts))
    return counts


def rows_of(tower: staged.StagedEncoder, x: Tensor) -> list[Tensor]:
    layers = tuple(range(tower.depth + 1))
    return [stream.hidden for _, stream in staged.run_early(tower, x, layers, tower.depth)]


@pytest.mark.parametrize("name", [name for name in TOWERS if name not in SPATIAL])
def test_the_same_numbers_from_one_compilation(name: str, counter: CompileCounter) -> None:
    tower, x = (make() for make in TOWERS[name])
    tower = staged.freeze(tower).eval()
    expected = rows_of(tower, x)
    tower.compile_blocks()
    for found, plain in zip(rows_of(tower, x), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    assert 1 <= counter.frame_count <= 2  # T5's first block computes the bias that the others get
    before = counter.frame_count
    staged.run_blocks(tower, tower.embed(x), 0, tower.depth)  # with gradient enabled
    assert counter.frame_count == before


@pytest.mark.parametrize("name", SPATIAL)
def test_convolutional_towers_say_that_they_cannot(name: str) -> None:
    with pytest.raises(Opaque):
        TOWERS[name][0]().compile_blocks()


def test_training_with_compiled_blocks(tmp_path: Path, dataset_of_squares: Path, counter: CompileCounter) -> None:
    words = (
        "--data.root",
        dataset_of_squares,
        "--epochs",
        1,
        "--batch_size",
        4,
        "--device",
        "cpu",
        "--compile",
        "true",
    )
    call(TRAIN, *words, "--output", tmp_path / "run")
    assert counter.frame_count > 0
    message = refuse(TRAIN, *words, "--adapter.kind", "lora", "--output", tmp_path / "lora")
    assert "--compile true: with this method gradient passes through every block; leave it out" in message
