"""A tiny training script for the tests of the engine, with every source of randomness that a resume could forget.

``launch`` runs it in a process of its own. What only slows it down comes from the environment and not from the config,
so that a run may be continued at another pace.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlkit.cli.config import run as cli
from vlkit.engine import checkpoint
from vlkit.engine.config import RunConfig
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.engine.fit import fit
from vlkit.engine.loader import make_loader
from vlkit.engine.run import Forward, Run
from vlkit.errors import UserError


@dataclass
class ToyConfig(RunConfig):
    """Train a toy."""

    epochs: int = 4
    batch_size: int = 8
    lr: float = 0.05
    log_every: int = 1
    workers: int | None = 0
    examples: int = 43
    """Number of training examples; 43 leaves some over at the end of an epoch."""
    noise: bool = True
    """Augmentation, dropout and batch norm; off: nothing depends on how a batch is split."""
    break_at: int = -1
    """Epoch whose losses are no numbers."""
    bad_example: int = -1
    """Example that cannot be read."""


class ToyData:
    """Numbers with noise from every global generator."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.examples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.config.bad_example:
            raise UserError(f"example {index}: cannot be read, delete it")
        if "TOY_READ" in os.environ:
            with open(os.environ["TOY_READ"] + f".{os.environ.get('RANK', 0)}", "a") as read:
                print(index, file=read)
        features = torch.sin(torch.arange(6) * (index + 1.0))
        target = features[:3].sum()
        if self.config.noise:
            features = features + 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return features, target


class ToyModel(nn.Module):
    """A frozen layer, trained ones, and a parameter that no step uses."""

    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.base = nn.Linear(6, 16).requires_grad_(False)
        self.norm = nn.BatchNorm1d(16) if noise else nn.LayerNorm(16)
        self.dropout = nn.Dropout(0.3 if noise else 0.0)
        self.out = nn.Linear(16, 1)
        self.gate = nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 6] -> [B]."""
        return self.out(self.dropout(self.norm(self.base(x)).relu()) * self.gate).squeeze(1)


def main(config: ToyConfig) -> None:
    """Data, model, loss, fit."""
    torch.set_num_threads(1)
    run = Run.open(config, "toy")
    fabric = run.fabric
    loader = make_loader(ToyData(config), config, fabric)
    model = fabric.setup_module(ToyModel(config.noise))

    def loss_of(forward: Forward, batch: tuple[Tensor, Tensor], epoch: float) -> Tensor:
        features, target = batch
        loss = nn.functional.mse_loss(forward(features), target)
        if round(epoch * len(loader)) + 1 == int(os.environ.get("TOY_LAST_STEP", 0)):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(float(os.environ.get("TOY_STEP_SECONDS", 0)))
        return loss * torch.nan if int(epoch) == config.break_at else loss

    def evaluate() -> dict[str, float]:
        time.sleep(float(os.environ.get("TOY_EVALUATION_SECONDS", 0)))
        random.random(), np.random.rand(), torch.rand(3)  # training must not notice what an evaluation draws
        features = torch.sin(torch.arange(54).reshape(9, 6) * 1.7).to(fabric.device)
        mine = features[list(my_share(fabric, 9))]
        predicted = gather_shares(fabric, model(mine), 9)
        return {"score": -float(nn.functional.mse_loss(predicted, features[:, :3].sum(1)))}

    result = fit(run, model, loader, loss_of, evaluate, primary="score")
    path = run.folder.path
    save_file(checkpoint.copy_trained(model), path / f"weights-{fabric.global_rank}.safetensors")
    if fabric.is_global_zero:
        checkpoint.save_adapter(path, model, {"task": "toy", "metrics": result.metrics})


def launch(arguments: list[str], messages: str, environment: dict[str, str]) -> None:
    """Be the script: run with ``arguments``, with stderr in the file ``messages``."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of the data workers, as in a script
    os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    cli(main, ToyConfig, arguments)


if __name__ == "__main__":
    cli(main, ToyConfig)
