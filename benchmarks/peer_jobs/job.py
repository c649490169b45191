"""What every peer's training script is given, and how its steps are measured.

A script of a peer trains with that peer's own loop and calls ``tick`` after each optimizer step. Memory is the most
bytes alive at once beyond the loaded weights (optimizer state, gradients, activations, the batch), counted by the same
counter for all: live storages on the CPU, the allocator on CUDA.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

Loop = Callable[[int, Callable[[], None]], None]
"""Trains a number of steps from the start, and calls its second argument after each."""


@dataclass(frozen=True)
class Job:
    """A fine-tuning job.

    Attributes:
        base: folder of a CLIP as ``save_pretrained`` of transformers writes it.
        data: prepared dataset of images with captions (``dataset.json``).
        method: what is trained, in the peer's words.
        batch_size: pairs per step.
        steps: timed steps.
        device: device of the run.
        output: JSON file of the result.
    """

    base: Path
    data: Path
    method: str
    batch_size: int
    steps: int
    device: torch.device
    output: Path

    @classmethod
    def from_arguments(cls) -> Job:
        parser = argparse.ArgumentParser()
        for name in ("base", "data", "output"):
            parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument("--method", required=True)
        parser.add_argument("--batch_size", type=int, required=True)
        parser.add_argument("--steps", type=int, required=True)
        parser.add_argument("--device", default="cpu")
        values = vars(parser.parse_args())
        return cls(**{**values, "device": torch.device(values["device"])})

    def pairs(self) -> list[tuple[Path, str]]:
        """An image file and its first caption, for each training image."""
        lines = (self.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return [(self.data / "images" / r["image"], r["texts"][0]) for r in map(json.loads, lines)]

    def measure(self, model: torch.nn.Module, loop: Loop) -> None:
        """Run the loop once for its memory and once for its time, and write the result."""
        from vlkit.memory.step import peak_bytes

        peak = peak_bytes(lambda live: loop(2, lambda: None), self.device)
        ticks: list[float] = []

        def tick() -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            ticks.append(time.perf_counter())

        loop(self.steps + 1, tick)  # the first step warms libraries up
        seconds = [after - before for before, after in itertools.pairwise(ticks)]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        row = {"step_s": statistics.median(seconds), "peak_bytes": peak, "trained_parameters": trained}
        self.output.write_text(json.dumps(row), encoding="utf-8")
