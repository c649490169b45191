"""Saved activations and peak memory of a training step, measured or predicted without running it."""

from vlkit.memory.estimate import CUDA_CONTEXT_BYTES, CUDA_GAPS, fake_copy, fake_tensors, largest_batch, tensor_budget
from vlkit.memory.live import LiveBytes, saved_bytes
from vlkit.memory.shapes import shape_base
from vlkit.memory.step import (
    StepMemory,
    Times,
    frozen_bytes,
    measure_step,
    peak_bytes,
    time_ratio,
    times_in_turns,
    train_step,
)

__all__ = [
    "CUDA_CONTEXT_BYTES",
    "CUDA_GAPS",
    "LiveBytes",
    "StepMemory",
    "Times",
    "fake_copy",
    "fake_tensors",
    "frozen_bytes",
    "largest_batch",
    "measure_step",
    "peak_bytes",
    "saved_bytes",
    "shape_base",
    "tensor_budget",
    "time_ratio",
    "times_in_turns",
    "train_step",
]
