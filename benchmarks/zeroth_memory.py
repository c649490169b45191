"""Memory of a retrieval step by optimizer: AdamW, 8-bit AdamW, APOLLO, MeZO and DiZO against inference.

    python benchmarks/zeroth_memory.py --base tiny --batch_size 16 --json docs/results/zeroth_memory.json

Peaks are measured, parameters and optimizer state included. "inference" is the forward of the same model without
gradient, on the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import FullOptions, LoraOptions
from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.engine.mezo import ZerothOptions, measure_zeroth_step
from vlkit.engine.optim import make_optimizer
from vlkit.files import write_json
from vlkit.memory import measure_step, peak_bytes
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

MIB = 2**20
FIRST_ORDER = ("adamw", "adamw8bit", "apollo")
METHODS = {"full": FullOptions(), "lora": LoraOptions(targets="attention"), "sherl": SherlOptions()}


@dataclass
class Config:
    """Memory of a step by optimizer."""

    base: str = "tiny"
    """Base; ARCH has random weights."""
    batch_size: int = 32
    """Pairs per step."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Methods: full, lora (on the attentions), sherl."""
    json: Path | None = None
    """Write the rows to this file."""


def main(config: Config) -> None:
    bench = ContrastiveBench(config.base, predicts=False, device="cpu")
    rows = [row for kind in config.methods for row in measured(bench, kind, config.batch_size)]
    table = Table("method", "optimizer", title=f"{config.base}, {config.batch_size} pairs, MiB")
    for heading in ("saved", "optimizer", "all", "over inference"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (f"{row[key] / MIB:.0f}" for key in ("saved_bytes", "optimizer_bytes", "total_bytes"))
        table.add_row(row["method"], row["optimizer"], *numbers, f"{row['over_inference']:.3f} x")
    Console().print(table)
    if config.json:
        write_json(config.json, {"base": config.base, "batch_size": config.batch_size, "rows": rows})


def measured(bench: ContrastiveBench, kind: str, batch_size: int) -> list[dict[str, Any]]:
    """Inference, the optimizers with gradients, and those without, for one method."""
    rows: list[dict[str, Any]] = []

    def add(name: str, saved: int, optimizer: int, total: int) -> None:
        over = total / (rows[0]["total_bytes"] if rows else total)
        found = {"saved_bytes": saved, "optimizer_bytes": optimizer, "total_bytes": total, "over_inference": over}
        rows.append({"method": kind, "optimizer": name, **found})

    model, loss_of = bench._step(bench.model(METHODS[kind]), batch_size)
    model.eval()
    infer = torch.no_grad()(lambda: float(loss_of()))
    infer()
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    add("inference", 0, 0, weights + peak_bytes(lambda live: infer(), bench.device))
    for name, options in {"mezo": ZerothOptions(), "dizo": ZerothOptions(project_every=100)}.items():
        step = measure_zeroth_step(model, loss_of, options, bench.device, timed=0)
        add(name, step.saved_bytes, step.optimizer_bytes, step.total_bytes)
    for name in FIRST_ORDER:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        step = measure_step(model.train(), loss_of, make_optimizer(trained, 1e-6, 0.0, name))
        add(name, step.saved_bytes, step.optimizer_bytes, step.total_bytes)
    return rows


if __name__ == "__main__":
    run(main, Config)
