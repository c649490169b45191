"""Train several methods on one task, several seeds each, and compare accuracy, memory and time.

    python tasks/compare.py --task retrieval --kinds sherl,linear,lora,full --seeds 3 --output runs/compare
    python tasks/compare.py --task vqa --kinds sherl,lora:rank=16:checkpointing=true --output runs/vqa
    python tasks/compare.py --kinds sherl,lora,full --search_rates 3e-4,1e-3,3e-3 --output runs/searched

A method is a kind, with options after colons. Finished runs are kept: after a crash the same command continues, and an
interrupted run resumes from its last checkpoint. A method that fails does not stop the others.
Writes results.csv (one row per run), results.md (mean and deviation), pareto.png (accuracy over memory) and, with a
search, rates.md (the validation score of each learning rate).
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlkit.adapters import MethodOptions
from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.engine.run_folder import new_folder
from vlkit.errors import UserError
from vlkit.files import read_json, text_lines, whole_file, write_text
from vlkit.tasks.registry import TASKS

SCRIPTS = Path(__file__).parent
MIB = 2**20
COSTS = {
    "saved activations MiB": lambda m: m["saved_activation_bytes"] / MIB,
    "peak MiB": lambda m: m["peak_memory_bytes"] / MIB,
    "step / forward": lambda m: m.get("step_time_over_forward"),
    "trained parameters": lambda m: m["trainable_parameters"],
}
# Searched on demo retrieval (docs/results/index.md): the base's own weights need a lower learning rate than modules
# trained from scratch.
LEARNING_RATES = {"full": "3e-4"}
# Okabe and Ito's palette, readable with colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = "osD^vPX*<>hd"

Cell = tuple[str, int]  # method, seed
Trial = tuple[str, str]  # method, learning rate
Metrics = Mapping[str, Any]  # a run's metrics.json


@dataclass
class Config:
    """Compare adaptation methods."""

    output: Path | None = None
    """Folder of the comparison; each run gets a folder in it (default: runs/compare/<time>). Given again, the runs that
    are missing are made."""
    task: str = "retrieval"
    """Task to compare on, such as retrieval, video_retrieval, vqa, grounding, classification, moment_retrieval,
    captioning or text."""
    kinds: str = "sherl,sherl:handoff=tokens,linear,bitfit,lora,full"
    """Methods, separated by commas, with options after colons (lora:rank=16:checkpointing=true); an option with two
    dashes is a flag of the training script (full:--optimizer=mezo:--lr=1e-5); all = every method. Classification also
    has the controls zero-shot, ridge and tip-adapter, whose options are those of their head (ridge:penalty=0.1), and
    blackvip (10 epochs), whose options are flags of tasks/classification/black_box.py (blackvip:eps=0.1:epochs=20);
    text has bag-of-words, captioning has nearest."""
    seeds: int = 3
    """Number of seeds: 0, 1, …"""
    jobs: int = 1
    """Runs at the same time; they share the CPU cores."""
    flags: list[str] = field(default_factory=list)
    """Further flags for every run as name=value, e.g. epochs=8 data.root=DIR. cache, cache_dtype and cache_test are
    omitted for methods that train inside the base (bitfit, lora, full), which cannot use the cache."""
    learning_rates: list[str] = field(default_factory=list)
    """Learning rates as method=value; default: the script's; full 3e-4."""
    search_rates: str = ""
    """Learning rates to try, separated by commas: each method trains with each of them (seed 0), and the best on the
    validation split trains the other seeds. Methods in --learning_rates keep theirs."""

    search_flags: list[str] = field(default_factory=list)
    """Flags of the search alone as name=value, e.g. epochs=1: a smaller budget than that of the runs it serves."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"--task {self.task}: no such task; the tasks are {', '.join(TASKS)}")
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        for name in ("flags", "learning_rates", "search_flags"):
            wrong = [pair for pair in getattr(self, name) if "=" not in pair]
            if wrong:
                raise UserError(f"--{name} {wrong[0]}: write it as name=value")
        for rate in self.rates:
            try:
                good = float(rate) > 0
            except ValueError:
                good = False
            if not good:
                raise UserError(f"--search_rates {rate}: must be numbers above 0, separated by commas: 1e-3,3e-3")

    @property
    def rates(self) -> list[str]:
        """The learning rates to try."""
        return [rate.strip() for rate in self.search_rates.split(",") if rate.strip()]

    def given_rate(self, method: str) -> str | None:
        """The learning rate that ``--learning_rates`` states for a method or its kind."""
        given = dict(pair.rsplit("=", 1) for pair in self.learning_rates)
        return given.get(method, given.get(method.split(":")[0]))


def main(config: Config) -> None:
    task, output = TASKS[config.task], Path(config.output or new_folder("compare"))
    known = [*task.controls, *task.methods]
    methods = known if config.kinds == "all" else config.kinds.split(",")
    unknown = [m for m in methods if m.split(":")[0] not in known]
    if unknown:
        raise UserError(f"--kinds {', '.join(unknown)}: no such method; the methods are {', '.join(known)}")
    cells = [(method, seed) for seed in range(config.seeds) for method in methods]
    console, main_score = Console(stderr=True), next(iter(TASKS[config.task].scores.values()))
    failed: dict[Cell, str] = {}
    best: dict[str, str] = {}

    def finished(method: str, seed: int, rate: str | None, search: bool = False) -> Path | None:
        """The folder of the finished run; None if it failed."""
        own = config.search_flags if search else []
        tried = (f"-lr{rate}" if rate else "") + ("-search" if own else "")
        folder = output / f"{method.replace(':', '-').replace('=', '-')}{tried}-seed{seed}"
        if not (folder / "metrics.json").exists():
            try:
                train(config, method, seed, folder, rate, own)
            except UserError as error:
                failed[method, seed] = str(error)
                console.print(str(error), style="red", highlight=False)
                return None
        return folder

    def trial(place: Trial) -> float | None:
        method, rate = place
        folder = finished(method, 0, rate, search=True)
        score = None if folder is None else validation_score(folder, main_score)
        if score is not None:
            console.print(f"{method} lr {rate}: {main_score} {score:.1f} on validation", highlight=False)
        return score

    def cell(place: Cell) -> Metrics | None:
        method, seed = place
        folder = finished(method, seed, best.get(method))
        if folder is None:
            return None
        metrics = read_json(folder / "metrics.json")
        console.print(f"{method} seed {seed}: {main_score} {metrics['after'][main_score]:.1f}", highlight=False)
        return metrics

    with ThreadPoolExecutor(config.jobs) as pool:
        searched = [m for m in methods if config.given_rate(m) is None and m.split(":")[0] not in task.controls]
        trials = [(m, rate) for rate in config.rates for m in searched]
        tried = dict(zip(trials, pool.map(trial, trials), strict=True))
        best.update(best_rates(tried))
        if tried:
            write_text(output / "rates.md", rates_table(config.rates, tried, main_score))
        found = dict(zip(cells, pool.map(cell, cells), strict=True))
    done = {place: metrics for place, metrics in found.items() if metrics is not None}
    if done:
        methods = [method for method in methods if any(place[0] == method for place in done)]
        write_csv(output / "results.csv", config.task, done)
        table = markdown(config.task, methods, done)
        write_text(output / "results.md", table)
        draw(output / "pareto.png", config.task, methods, done)
        print(table)
        console.print(f"results: {output}", highlight=False, soft_wrap=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(cells)} runs failed: {next(iter(failed.values()))}")


def validation_score(folder: Path, score: str) -> float | None:
    """The best value of a score on the validation split in a run's log; None if the run never evaluated it."""
    lines = text_lines((folder / "log.jsonl").read_text(encoding="utf-8"))
    values = [record[score] for record in map(json.loads, lines) if "split" in record and score in record]
    return max(values, default=None)


def best_rates(tried: Mapping[Trial, float | None]) -> dict[str, str]:
    """Method -> the learning rate with the best validation score; the lower rate of two equal ones."""
    best: dict[str, str] = {}
    for (method, rate), score in sorted(tried.items(), key=lambda item: float(item[0][1])):
        if score is not None and (method not in best or score > (tried[method, best[method]] or 0)):
            best[method] = rate
    return best


def rates_table(rates: Sequence[str], tried: Mapping[Trial, float | None], score: str) -> str:
    """The table of the search: validation score per method and learning rate, the chosen ones in bold."""
    best = best_rates(tried)
    lines = [f"| method ({score} on validation, seed 0) | " + " | ".join(rates) + " |", "|---|" + "---:|" * len(rates)]
    for method in dict.fromkeys(method for method, _ in tried):
        found = [(rate, tried[method, rate]) for rate in rates]
        cells = [
            "failed" if value is None else f"**{value:.1f}**" if rate == best[method] else f"{value:.1f}"
            for rate, value in found
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def train(
    config: Config, method: str, seed: int, folder: Path, rate: str | None = None, more: Sequence[str] = ()
) -> None:
    """Run the task's training script for one cell; an interrupted run is resumed.

    Args:
        rate: learning rate; default: the one that the comparison's settings give.
        more: flags as name=value that override those of the comparison.

    Raises:
        UserError: the run failed; names its log and the last line of it.
    """
    kind, *options = method.split(":")
    own = [option for option in options if option.startswith("--")]
    options = [option for option in options if not option.startswith("--")]
    task = TASKS[config.task]
    rate = rate or config.given_rate(method) or LEARNING_RATES.get(kind)
    name, control = task.control_scripts.get(kind, "train.py"), task.controls.get(kind, ())
    # A later flag overrides an earlier one: a control keeps its head.
    flags = [] if rate is None else [f"--lr={rate}"]
    if kind in task.control_scripts:
        flags = [f"--{flag}" for flag in config.flags if flag.startswith(("data.", "base=", "image_size="))]
        flags += [f"--{flag}" for flag in [*control, *options]]
    elif kind in task.controls:
        flags += flags_for(None, [*config.flags, *more])
        flags += [*(f"--{flag}" for flag in control), *(f"--head.{option}" for option in options)]
    else:
        flags += flags_for(task.methods[kind], [*config.flags, *more])
        flags += [f"--adapter.kind={kind}", *(f"--adapter.{option}" for option in options)]
    flags += own
    script = [
        sys.executable,
        str(SCRIPTS / config.task / name),
        "--resume",
        f"--output={folder}",
        f"--seed={seed}",
    ]
    # Not more threads than requested: on a busy machine too many threads wait for each other.
    threads = max(1, min(int(os.environ.get("OMP_NUM_THREADS", "") or 2**16), (os.cpu_count() or 1) // config.jobs))
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run([*script, *flags], stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"{method} seed {seed}: exit code {code} ({last}); its output is in {log}; run again to continue"
        )


def flags_for(method: type[MethodOptions] | None, flags: Sequence[str]) -> list[str]:
    """The further flags of a run; cache flags only for methods that support the cache, no control (None) does."""
    left_out = () if method is not None and method.has_early_route else ("cache", "cache_dtype", "cache_test")
    return [f"--{flag}" for flag in flags if flag.partition("=")[0] not in left_out]


def write_csv(path: Path, task: str, metrics: Mapping[Cell, Metrics]) -> None:
    """One row per run: method, seed, the table's columns and every metric before and after."""
    rows = []
    for (method, seed), m in metrics.items():
        scores = {name: m["after"][key] for name, key in TASKS[task].scores.items()}
        costs = {name: read(m) for name, read in COSTS.items()} | {"train s": m["train_seconds"]}
        pairs = {f"{when}_{key}": value for when in ("before", "after") for key, value in m[when].items()}
        rows.append({"method": method, "seed": seed, **scores, **costs, **pairs})
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown(task: str, methods: Sequence[str], metrics: Mapping[Cell, Metrics]) -> str:
    """The table: scores as mean and standard deviation over seeds, costs as means; the first row shows the scores
    before.
    """
    columns = [*TASKS[task].scores, *COSTS]
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    before = next(iter(metrics.values()))["before"]
    cells = [f"{before[key]:.1f}" if key in before else "" for key in TASKS[task].scores.values()]
    lines.append("| before | " + " | ".join([*cells, *[""] * len(COSTS)]) + " |")
    for method in methods:
        runs = [m for (name, _), m in metrics.items() if name == method]
        cells = []
        for key in TASKS[task].scores.values():
            values = [float(m["after"][key]) for m in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        for name, read in COSTS.items():
            values = [read(m) for m in runs if read(m) is not None]
            digits = 2 if "/" in name else 0
            cells.append(f"{statistics.fmean(values):,.{digits}f}" if values else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, task: str, methods: Sequence[str], metrics: Mapping[Cell, Metrics]) -> None:
    """The task's main score over saved activations (logarithmic axis), one point per run."""
    name, key = next(iter(TASKS[task].scores.items()))
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(methods):
        runs = [m for (cell, _), m in metrics.items() if cell == method]
        # A log axis has no zero: methods that save almost nothing are drawn at its left end.
        x = [max(COSTS["saved activations MiB"](m), 0.01) for m in runs]
        y = [m["after"][key] for m in runs]
        look = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
        axes.scatter(x, y, label=method, s=45, **look)
    before = next(iter(metrics.values()))["before"]
    if key in before:
        axes.axhline(before[key], color="grey", linestyle="--", linewidth=1)
        axes.text(0.99, 0.02, "dashed: before", transform=axes.transAxes, ha="right", color="grey")
    axes.set(xscale="log", xlabel="saved activations per step, MiB (log)", ylabel=name)
    axes.set_title(f"{task.replace('_', ' ')}: accuracy over memory")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)  # labels beside the points would overlap
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run(main, Config)
