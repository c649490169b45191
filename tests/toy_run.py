"""A tiny training script for the tests of the engine, with every source of randomness that a resume could forget."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlkit import checkpoint
from vlkit.config import run
from vlkit.engine import RunConfig, fit, make_fabric, make_loader, open_run
from vlkit.errors import UserError


@dataclass
class ToyConfig(RunConfig):
    """Train a toy."""

    epochs: int = 4
    batch_size: int = 8
    lr: float = 0.05
    log_every: int = 1
    examples: int = 43
    """Number of training examples; 43 leaves some over at the end of an epoch."""
    noise: bool = True
    """Augmentation, dropout and batch norm; off: nothing depends on how a batch is split between processes."""
    delay: float = 0.0
    """Seconds to sleep in each step."""
    evaluation_delay: float = 0.0
    """Seconds to sleep in each evaluation."""
    break_at: int = -1
    """Batch whose loss is not a number."""
    bad_example: int = -1
    """Example that cannot be read."""
    workers: int | None = 0


class ToyData:
    """Numbers with noise from every global generator."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.examples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.config.bad_example:
            raise UserError(f"example {index}: cannot be read, delete it")
        features = torch.sin(torch.arange(6) * (index + 1.0))
        target = features[:3].sum()
        if self.config.noise:
            features = features + 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return features, target


class ToyModel(nn.Module):
    """A frozen layer, a trained one, and a parameter that no step uses."""

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
    fabric = make_fabric(config.device, config.precision, config.seed)
    folder = open_run(config, "toy", fabric)
    loader = make_loader(ToyData(config), config, fabric)
    model = fabric.setup_module(ToyModel(config.noise))
    seen = 0

    def step(batch: tuple[Tensor, Tensor], epoch: float) -> dict[str, Tensor]:
        nonlocal seen
        features, target = batch
        loss = nn.functional.mse_loss(model(features), target)
        if seen == config.break_at:
            loss = loss * torch.nan
        seen += 1
        fabric.backward(loss)
        time.sleep(config.delay)
        return {"loss": loss}

    def evaluate() -> dict[str, float]:
        time.sleep(config.evaluation_delay)
        random.random(), np.random.rand(), torch.rand(3)  # an evaluation may draw; training must not notice
        features = torch.sin(torch.arange(60).reshape(10, 6) * 1.7)
        error = nn.functional.mse_loss(model(features), features[:, :3].sum(1))
        return {"score": -float(error)}

    result = fit(model, loader, step, evaluate, primary="score", config=config, folder=folder, fabric=fabric)
    if fabric.is_global_zero:
        checkpoint.save_adapter(folder.path, model, {"metrics": result.metrics, "task": "toy"})
        Path(folder.path, "result.txt").write_text(f"{result.best_step} {result.steps} {result.metrics}")


if __name__ == "__main__":
    run(main, ToyConfig)
