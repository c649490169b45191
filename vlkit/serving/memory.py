"""Predicted memory of a training step with each method, to see whether it fits on a GPU."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vlkit.adapters import ADAPTERS
from vlkit.errors import UserError
from vlkit.files import cache_folder, read_json, write_json
from vlkit.memory import tensor_budget
from vlkit.memory.step import StepMemory
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

log = logging.getLogger(__name__)

METHODS = {"SHERL": ADAPTERS["sherl"], "LoRA": ADAPTERS["lora"], "full": ADAPTERS["full"]}
"""Methods compared, with their default options."""
BASES = ("tiny", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "RN50", "convnext_base_w")
"""Bases to choose from; ``python tasks/memory.py`` accepts any other."""

ON_A_LINE = frozenset({"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14"})
"""Bases whose memory is linear in the batch size from the first of :data:`POINTS` on: such batches are large enough
that methods split them into chunks and that activations, not the optimizer, determine the peak. Other bases are
predicted at the requested batch size.
"""
POINTS = 16, 32

# Predictions run in a fake-tensor mode: one at a time, to limit the memory of a busy demo.
_one_at_a_time = threading.Lock()


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


def memory_needs(base: str, batch_size: int, gpu_bytes: int | None = None) -> Iterator[Need]:
    """Predict one method after another; each takes seconds the first time and is cached afterwards.

    For a base in :data:`ON_A_LINE`, two predictions cover all batch sizes from the first of :data:`POINTS` on.

    Args:
        base: architecture of open_clip, or ``tiny``.
        batch_size: pairs per step.
        gpu_bytes: memory of the GPU.
    """
    for method in METHODS:
        line = _line(base, method, batch_size)
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


def _line(base: str, method: str, batch_size: int) -> _Line:
    on_it = base in ON_A_LINE and batch_size >= POINTS[0]
    sizes = POINTS if on_it else (batch_size, max(1, batch_size // 2) if batch_size > 1 else 2)
    one, other = (_predicted(base, method, size) for size in sizes)
    beyond, apart = batch_size - sizes[0], sizes[1] - sizes[0]
    kept = one.saved_bytes + beyond * (other.saved_bytes - one.saved_bytes) / apart
    slope = (other.total_bytes - one.total_bytes) / apart
    parameters = one.parameter_bytes + one.optimizer_bytes
    return _Line(round(kept), parameters, round(one.total_bytes + beyond * slope), slope)


@functools.lru_cache(maxsize=256)
def _predicted(base: str, method: str, batch_size: int) -> StepMemory:
    """One prediction, read from the cache folder if the same code made it before."""
    options = METHODS[method]()
    known = {"base": base, "options": asdict(options), "method": method, "batch": batch_size, "code": _code()}
    name = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:24]
    file = cache_folder().absolute() / "memory" / f"{name}.json"
    with _one_at_a_time:
        try:
            return StepMemory(**read_json(file))
        except (UserError, OSError, TypeError):  # missing or damaged: predict again
            pass
        bench = _bench(base)
        with _no_collections():
            memory = bench.memory(bench.model(options), batch_size)
    try:
        write_json(file, asdict(memory))
    except OSError as error:
        log.warning("%s: cannot write (%s); it will be predicted again", file, error.strerror or error)
    return memory


@contextmanager
def _no_collections() -> Iterator[None]:
    """Pause garbage collection: it scans everything that a server has loaded and frees nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """Hash of what a prediction depends on besides its arguments: torch, and this package's code."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def _bench(base: str) -> ContrastiveBench:
    return ContrastiveBench(base, predicts=True, device="cpu", precision="32-true")
