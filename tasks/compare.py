"""Train several methods on one task, several seeds each, and compare accuracy, memory and time.

    python tasks/compare.py --kinds sherl,sherl:handoff=pooled,linear,lora,full --seeds 3 --output runs/compare

A method is a kind and, after colons, its options. Cells that are done are kept: the same command goes on after a crash.
Writes results.csv (a row a run), results.md (mean and deviation) and pareto.png (accuracy over memory).
"""

from __future__ import annotations

import csv
import io
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from vlkit.adapters import ADAPTERS
from vlkit.config import run
from vlkit.errors import UserError
from vlkit.files import read_json, whole_file, write_text

TASKS = Path(__file__).parent
COLUMNS = {
    "rsum": lambda m: m["after"]["rsum"],
    "i2t R@1": lambda m: m["after"]["i2t_r1"],
    "t2i R@1": lambda m: m["after"]["t2i_r1"],
    "kept for backward MiB": lambda m: m["saved_activation_bytes"] / 2**20,
    "peak MiB": lambda m: m["peak_memory_bytes"] / 2**20,
    "train s": lambda m: m["train_seconds"],
    "trained parameters": lambda m: m["trainable_parameters"],
}
# Okabe and Ito's palette, told apart by colour-blind readers too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


@dataclass
class Config:
    """Compare adaptation methods."""

    output: Path
    """Folder of the comparison; each run gets a folder in it."""
    task: Literal["retrieval"] = "retrieval"
    """Which task."""
    kinds: str = "sherl,sherl:handoff=pooled,linear,bitfit,lora,full"
    """Methods, separated by commas; options behind colons: lora:rank=16:checkpointing=true."""
    seeds: int = 3
    """Number of seeds: 0, 1, …"""
    jobs: int = 1
    """Runs side by side; the cores are shared between them."""
    flags: list[str] = field(default_factory=list)
    """Further flags for every run as name=value, e.g. epochs=8 data.root=DIR."""
    learning_rates: list[str] = field(default_factory=list)
    """Learning rates that differ from the script's default, as method=value."""


def main(config: Config) -> None:
    methods = config.kinds.split(",")
    unknown = [m for m in methods if m.split(":")[0] not in ADAPTERS]
    if unknown:
        raise UserError(f"--kinds {', '.join(unknown)}: no such method; the methods are {', '.join(ADAPTERS)}")
    cells = [(method, seed) for seed in range(config.seeds) for method in methods]
    console = Console(stderr=True)

    def cell(place: tuple[str, int]) -> dict[str, Any]:
        method, seed = place
        folder = config.output / f"{method.replace(':', '-').replace('=', '-')}-seed{seed}"
        if not (folder / "metrics.json").exists():
            train(config, method, seed, folder)
        metrics = read_json(folder / "metrics.json")
        console.print(f"{method} seed {seed}: rsum {metrics['after']['rsum']:.1f}", highlight=False)
        return metrics

    with ThreadPoolExecutor(config.jobs) as pool:
        metrics = dict(zip(cells, pool.map(cell, cells), strict=True))
    write_csv(config.output / "results.csv", metrics)
    table = markdown(methods, metrics)
    write_text(config.output / "results.md", table)
    draw(config.output / "pareto.png", methods, metrics)
    print(table)


def train(config: Config, method: str, seed: int, folder: Path) -> None:
    """Run the task's training script for one cell; it goes on where a broken run stopped.

    Raises:
        UserError: the run failed; names its log.
    """
    kind, *options = method.split(":")
    rates = dict(pair.rsplit("=", 1) for pair in config.learning_rates)
    flags = [f"--adapter.kind={kind}", *(f"--adapter.{option}" for option in options)]
    flags += [f"--{flag}" for flag in config.flags] + ([f"--lr={rates[method]}"] if method in rates else [])
    script = [sys.executable, str(TASKS / config.task / "train.py"), "--resume", f"--output={folder}", f"--seed={seed}"]
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run([*script, *flags], stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise UserError(f"{method} seed {seed} ended with exit code {code}; its output is in {log}; run again to go on")


def write_csv(path: Path, metrics: dict[tuple[str, int], dict[str, Any]]) -> None:
    """One row a run: method, seed, the table's columns and every metric before and after."""
    rows = []
    for (method, seed), m in metrics.items():
        numbers = {name: read(m) for name, read in COLUMNS.items()}
        pairs = {f"{when}_{key}": value for when in ("before", "after") for key, value in m[when].items()}
        rows.append({"method": method, "seed": seed, **numbers, **pairs})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown(methods: Sequence[str], metrics: dict[tuple[str, int], dict[str, Any]]) -> str:
    """The table: mean and, for measures that vary, standard deviation over seeds; first the base itself."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    before = {"after": next(iter(metrics.values()))["before"]}
    zero_shot = [f"{read(before):.1f}" for name, read in list(COLUMNS.items())[:3]]
    lines.append("| zero-shot | " + " | ".join([*zero_shot, *[""] * (len(COLUMNS) - 3)]) + " |")
    for method in methods:
        runs = [m for (name, _), m in metrics.items() if name == method]
        cells = []
        for name, read in COLUMNS.items():
            values = [float(read(m)) for m in runs]
            mean = statistics.fmean(values)
            if name == "trained parameters":
                cells.append(f"{mean:,.0f}")
            elif "MiB" in name or name == "train s":
                cells.append(f"{mean:.0f}")
            else:
                cells.append(f"{mean:.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, methods: Sequence[str], metrics: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Accuracy (rsum) over bytes kept for backward, a point a run, on a logarithmic axis."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(methods):
        runs = [m for (name, _), m in metrics.items() if name == method]
        x, y = ([COLUMNS[c](m) for m in runs] for c in ("kept for backward MiB", "rsum"))
        axes.scatter(x, y, color=PALETTE[number % len(PALETTE)], label=method, s=45, marker="osD^vPX*"[number % 8])
        axes.annotate(method, (statistics.fmean(x), max(y)), xytext=(0, 7), textcoords="offset points", ha="center")
    axes.axhline(next(iter(metrics.values()))["before"]["rsum"], color="grey", linestyle="--", linewidth=1)
    axes.text(0.99, 0.02, "dashed: zero-shot", transform=axes.transAxes, ha="right", color="grey")
    axes.set(
        xscale="log", xlabel="kept for backward in one step, MiB (log)", ylabel="rsum", title="accuracy over memory"
    )
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run(main, Config)
