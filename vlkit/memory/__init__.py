"""How much memory a training step keeps for backward and peaks at, measured or predicted without running it."""

from vlkit.memory.estimate import fake_copy, fake_tensors, largest_batch
from vlkit.memory.live import LiveBytes, saved_bytes
from vlkit.memory.shapes import shape_base
from vlkit.memory.step import StepMemory, measure_step, time_over_inference

__all__ = [
    "LiveBytes",
    "StepMemory",
    "fake_copy",
    "fake_tensors",
    "largest_batch",
    "measure_step",
    "saved_bytes",
    "shape_base",
    "time_over_inference",
]
