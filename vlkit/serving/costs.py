"""Predicted memory of one training step of any method, for a form that asks before it trains."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading

from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.options import adapter_options
from vlkit.memory.step import StepMemory
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

# Fake tensors of a large base need memory, too.
_one_at_a_time = threading.Lock()


def predicted_step(base: str, options: MethodOptions, batch_size: int) -> StepMemory:
    """Memory of one contrastive training step on the CPU in float32, predicted without running it; cached.

    Args:
        base: its ``--base`` name.
        options: the method.
        batch_size: pairs per step.

    Raises:
        UserError: no such base, or the method does not fit it.
    """
    values = json.dumps(dataclasses.asdict(options), sort_keys=True)  # pyright: ignore[reportArgumentType]
    with _one_at_a_time:
        return _predicted(base, values, batch_size)


@functools.lru_cache(maxsize=256)
def _predicted(base: str, options: str, batch_size: int) -> StepMemory:
    bench = _bench(base)
    return bench.memory(bench.model(adapter_options(json.loads(options))), batch_size)


@functools.lru_cache(maxsize=2)
def _bench(base: str) -> ContrastiveBench:
    return ContrastiveBench(base, predicts=True, device="cpu", precision="32-true")
