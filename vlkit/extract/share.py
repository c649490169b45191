"""The share of a process when a launcher started several: every n-th shard. The processes need not find each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

X = TypeVar("X")

_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
_LAUNCHERS += ("SLURM_NTASKS",)
"""Variables from which Fabric would conclude that it has to connect processes."""


@dataclass(frozen=True)
class Share:
    """This process's number, the number of processes, and its number on this machine (for its GPU)."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world} processes")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Share | None:
        """The share that torchrun, a Slurm job array, ``srun``, or both of Slurm's together give; None without one."""

        def number(name: str, default: int = 0) -> int:
            return int(environment.get(name, default))

        if "WORLD_SIZE" in environment and "RANK" in environment:
            return cls(number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK"))
        jobs = number("SLURM_ARRAY_TASK_COUNT", 1)
        tasks = number("SLURM_NTASKS", 1) if "SLURM_PROCID" in environment else 1
        if jobs * tasks == 1:
            return None
        # A job array may count in steps: --array=10-30:10 has the tasks 10, 20 and 30.
        step = max(1, number("SLURM_ARRAY_TASK_STEP", 1))
        job = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN")) // step if jobs > 1 else 0
        return cls(job * tasks + number("SLURM_PROCID"), jobs * tasks, number("SLURM_LOCALID"))

    def take(self, items: Sequence[X]) -> list[X]:
        """This process's items: every ``world``-th one."""
        return list(items[self.rank :: self.world])

    def stand_alone(self) -> None:
        """Make this process one of its own: it sees its own GPU only, and looks for no other process.

        Call it before CUDA starts.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else []
        if self.world > 1 and visible != "":
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[self.local % len(devices)] if devices else str(self.local)
        for name in _LAUNCHERS:
            os.environ.pop(name, None)
