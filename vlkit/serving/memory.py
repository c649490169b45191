"""Predicted memory of a training step with each method, to see whether it fits on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from vlkit.encoders.stored_weights import WeightFormat, with_format
from vlkit.memory import tensor_budget
from vlkit.memory.step import StepMemory
from vlkit.serving.kept_predictions import ACTIVE_SHARE, kept_prediction, predicting
from vlkit.serving.memory_table import KNOWN, METHODS, POINTS, methods_for, shipped
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

BASES = (*KNOWN, "tiny", "RN50", "convnext_base_w")
"""Bases to choose from, those of the shipped table first; ``python tasks/memory.py`` accepts any other."""


@dataclass(frozen=True)
class Need:
    """Predicted memory of one contrastive training step, in bytes.

    Attributes:
        method: key of :data:`METHODS`.
        kept: saved activations.
        parameters: base and trained parameters, with the optimizer's state.
        total: peak memory, without CUDA's own overhead.
        largest_batch: largest batch size that fits the GPU, to within a few percent (drawn from two batch sizes on a
            line); None without a GPU size.
        fits: whether ``total`` fits the GPU; None without a GPU size.
    """

    method: str
    kept: int
    parameters: int
    total: int
    largest_batch: int | None = None
    fits: bool | None = None


def is_known(base: str, base_weights: WeightFormat = "fp32") -> bool:
    """Whether the shipped table answers for this base, without a prediction."""
    names = {(with_format(base, base_weights), POINTS[0]), *((base, size) for size in POINTS)}
    return all((name, method, size) in shipped() for name, size in names for method in methods_for(base_weights))


def memory_needs(
    base: str, batch_size: int, gpu_bytes: int | None = None, base_weights: WeightFormat = "fp32"
) -> Iterator[Need]:
    """What one method after another needs: at once for the bases of the shipped table, else after seconds.

    For :data:`KNOWN` bases, two predictions cover all batch sizes from the first of :data:`POINTS` on.

    Args:
        base: architecture of open_clip, or ``tiny``.
        batch_size: pairs per step.
        gpu_bytes: memory of the GPU.
        base_weights: format of the frozen base's matrices; methods that train the base are left out if it is not fp32.
    """
    for method in methods_for(base_weights):
        line = _line(base, method, batch_size, base_weights)
        need = (method, line.kept, line.parameters, line.total)
        if gpu_bytes is None:
            yield Need(*need)
            continue
        budget = tensor_budget(gpu_bytes)
        largest = batch_size + int((budget - line.total) / max(line.slope, 1))
        yield Need(*need, largest_batch=max(0, largest), fits=line.total <= budget)


@dataclass(frozen=True)
class _Line:
    """Bytes at a batch size, as in :class:`Need`, and how ``total`` grows with each pair."""

    kept: int
    parameters: int
    total: int
    slope: float


def _line(base: str, method: str, batch_size: int, base_weights: WeightFormat) -> _Line:
    on_it = base in KNOWN and batch_size >= POINTS[0]
    sizes = POINTS if on_it else (batch_size, max(1, batch_size // 2) if batch_size > 1 else 2)
    one, other = (_predicted(base, method, size) for size in sizes)
    beyond, apart = batch_size - sizes[0], sizes[1] - sizes[0]
    kept, slope = (other.saved_bytes - one.saved_bytes) / apart, (other.total_bytes - one.total_bytes) / apart
    # A stored format changes only what does not depend on the batch size.
    start = one if base_weights == "fp32" else _predicted(with_format(base, base_weights), method, sizes[0])
    parameters = start.parameter_bytes + start.optimizer_bytes
    return _Line(round(start.saved_bytes + beyond * kept), parameters, round(start.total_bytes + beyond * slope), slope)


@functools.lru_cache(maxsize=256)
def _predicted(base: str, method: str, batch_size: int) -> StepMemory:
    """One prediction, from the shipped table, or from the cache folder if the same code made it before."""
    known = shipped().get((base, method, batch_size))
    if known is not None:
        return known
    key = {"base": base, "options": asdict(METHODS[method]()), "method": method, "batch": batch_size}
    return kept_prediction(key, lambda: predict(base, method, batch_size))


def predict(base: str, method: str, batch_size: int) -> StepMemory:
    """Predict the step of a method of :data:`METHODS` with its default options, float32; takes seconds.

    Raises:
        UserError: there is no such base, or it cannot be staged.
    """
    with predicting():
        bench = _bench(base)
        return bench.memory(bench.model(METHODS[method]()), batch_size)


@functools.lru_cache(maxsize=2)
def _bench(base: str) -> ContrastiveBench:
    return ContrastiveBench(base, predicts=True, device="cpu", precision="32-true", active_share=ACTIVE_SHARE)
