"""What a training step of each method needs, for people who wonder whether it fits on their GPU."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from vlkit.adapters import FullOptions, LoraOptions, SherlOptions
from vlkit.memory import tensor_budget
from vlkit.memory.contrastive import ContrastiveBench
from vlkit.memory.step import StepMemory

METHODS = {"SHERL": SherlOptions, "LoRA": LoraOptions, "full": FullOptions}
"""Methods compared, with their default options."""
BASES = ("tiny", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "RN50", "convnext_base_w")
"""Bases to choose from; ``python tasks/memory.py`` takes any other."""

# Predicting swaps what tensors are for a while: one at a time, so that a busy demo keeps its memory.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Need:
    """Predicted memory of one contrastive training step, in bytes.

    Attributes:
        method: key of :data:`METHODS`.
        kept: activations held for backward.
        parameters: of the base and of what trains, with the optimizer's state.
        total: peak, everything included but CUDA's own share.
        largest_batch: largest batch size that fits the GPU, to within a few percent (drawn from two batch sizes on a
            line); None without a GPU size.
        fits: whether ``total`` does; None without a GPU size.
    """

    method: str
    kept: int
    parameters: int
    total: int
    largest_batch: int | None = None
    fits: bool | None = None


def memory_needs(base: str, batch_size: int, gpu_bytes: int | None = None) -> Iterator[Need]:
    """Predict method after method; the first time takes seconds each, later it is remembered.

    Args:
        base: architecture of open_clip, or ``tiny``.
        batch_size: pairs a step.
        gpu_bytes: memory of the GPU.
    """
    for method in METHODS:
        memory = _predicted(base, method, batch_size)
        parameters = memory.parameter_bytes + memory.optimizer_bytes
        need = (method, memory.saved_bytes, parameters, memory.total_bytes)
        if gpu_bytes is None:
            yield Need(*need)
            continue
        budget = tensor_budget(gpu_bytes)
        other = max(1, batch_size // 2) if batch_size > 1 else 2
        # On a line through two batch sizes; the scores of all pairs bend it a little.
        slope = (memory.total_bytes - _predicted(base, method, other).total_bytes) / (batch_size - other)
        largest = batch_size + int((budget - memory.total_bytes) / max(slope, 1))
        yield Need(*need, largest_batch=max(0, largest), fits=memory.total_bytes <= budget)


@functools.lru_cache(maxsize=256)
def _predicted(base: str, method: str, batch_size: int) -> StepMemory:
    with _one_at_a_time:
        bench = _bench(base)
        return bench.memory(bench.model(METHODS[method]()), batch_size)


@functools.lru_cache(maxsize=2)
def _bench(base: str) -> ContrastiveBench:
    return ContrastiveBench(base, predicts=True, device="cpu", precision="32-true")
