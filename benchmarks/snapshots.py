"""What snapshots in memory add to a training step: the same steps with and without them, in turn.

python benchmarks/snapshots.py                         # 20 MiB of state, a snapshot every 50 steps
python benchmarks/snapshots.py --every 1 --device cuda
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vlkit.adapters.base import trained_state
from vlkit.cli.config import run
from vlkit.engine import checkpoint
from vlkit.engine.distributed import make_fabric
from vlkit.engine.optim import make_optimizer
from vlkit.engine.snapshots import Snapshots
from vlkit.engine.state import RunState

MIB = 2**20
LAYERS = 4


@dataclass
class Config:
    """Measure what snapshots in memory add to a training step."""

    size: int = 20
    """MiB of trained tensors and optimizer state: a weight and two moments of AdamW, four bytes each."""
    every: int = 50
    """Steps between snapshots."""
    rounds: int = 6
    """How often so many steps run with and without a snapshot."""
    batch_size: int = 512
    """Rows per step of a stack of linear layers: how long a step takes."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to compute on."""


class Bench:
    """A stack of linear layers that trains, and its snapshots.

    Attributes:
        taken: snapshots that were written; one that would begin before the last is written is left out.
        bytes: of the state.
    """

    def __init__(self, config: Config, memory: Path, token: str) -> None:
        self.fabric, self.every = make_fabric(config.device, "32-true"), config.every
        width = round((config.size * MIB / 12 / LAYERS) ** 0.5)
        self.model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS))).to(self.fabric.device)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = make_optimizer(self.parameters, 1e-4, 0.01, "adamw")
        self.inputs = torch.randn(config.batch_size, width, device=self.fabric.device)
        self.snapshots = Snapshots(self.fabric, memory, token, config.every)
        self.step, self.taken = 0, 0
        self.block(snapshots=True)  # the first steps make moments, buffers and slots
        self.block(snapshots=False)
        self.bytes, self.taken = sum(t.nbytes for group in self.tensors() for t in group.values()), 0

    def tensors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights and moments by name."""
        return trained_state(self.model), checkpoint.optimizer_tensors(self.optimizer, self.parameters)

    def block(self, snapshots: bool) -> tuple[float, float]:
        """``every`` steps, the first with a snapshot after it if asked for: ms per step, wall and CPU of all threads.

        The time in which the thread still writes after the last step is counted.
        """
        began, cpu = time.perf_counter(), time.process_time()
        for place in range(self.every):
            self.model(self.inputs).square().mean().backward()
            self.snapshots.before_update()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if snapshots and place == 0:
                weights, moments = self.tensors()
                before = self.snapshots._pending
                self.snapshots.take(checkpoint.State(weights, {}, moments, RunState(step=self.step)))
                self.taken += self.snapshots._pending is not before
        if self.snapshots._pending is not None:
            self.snapshots._pending.result()
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        per_step = 1e3 / self.every
        return per_step * (time.perf_counter() - began), per_step * (time.process_time() - cpu)


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(folder)
        bench = Bench(config, memory, f"bench-{Path(folder).name}")
        times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for number in range(config.rounds):
            for snapshots in (True, False) if number % 2 else (False, True):  # a drift of the machine cancels
                times[snapshots].append(bench.block(snapshots))
        bench.snapshots.close()
    found: dict[str, Any] = {"device": config.device, "state_mib": bench.bytes / MIB, "every": config.every}
    for place, name in enumerate(("wall", "cpu")):
        without, with_them = (statistics.median(row[place] for row in times[given]) for given in (False, True))
        found |= {f"{name}_ms_per_step": without, f"{name}_ms_per_step_with_snapshots": with_them}
        found[f"{name}_overhead_percent"] = 100 * (with_them / without - 1)
        found[f"{name}_ms_per_snapshot"] = (with_them - without) * config.every
    print(json.dumps({**found, "rounds": config.rounds, "snapshots": bench.taken}))


if __name__ == "__main__":
    run(main, Config)
