"""Compare training with memory-efficient (lean) SHERL and with plain autograd: loss and rsum curves for several seeds.

    python tasks/compare.py --kinds sherl:lean=false,sherl --seeds 3 --jobs 2 --output runs/curves \\
        --flags epochs=2 evaluate_every=1 log_every=1
    python benchmarks/training_curves.py --runs runs/curves --json docs/results/training_curves.json \\
        --chart docs/results/training_curves.png

The seed decides initialisation and data order, so two runs with the same seed differ only by rounding. The table lists
the distance between such runs and the distance between seeds: the largest distance at each step, then the median over
the steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlkit.cli.config import run
from vlkit.engine.report import versions
from vlkit.engine.run_folder import RunFolder
from vlkit.errors import UserError
from vlkit.files import whole_file, write_json

LOOKS = {
    "sherl-lean-false": ("SHERL, plain autograd", "#000000"),
    "sherl": ("SHERL", "#0072B2"),
}
"""Folder of a method from ``tasks/compare.py`` -> name and colour. The first method is the reference."""

Curves = dict[int, dict[int, float]]  # seed -> step -> value


@dataclass
class Config:
    """Compare training curves."""

    runs: Path
    """Output folder of the comparison."""
    json: Path | None = None
    """Also write the results to this JSON file."""
    chart: Path | None = None
    """Also draw the curves to this PNG file."""


def main(config: Config) -> None:
    losses = {folder: curves(config.runs, folder, loss) for folder in LOOKS}
    scores = {folder: curves(config.runs, folder, rsum) for folder in LOOKS}
    reference = next(iter(LOOKS))
    rows = []
    for folder, (name, _) in LOOKS.items():
        last = [list(curve.values())[-1] for curve in scores[folder].values()]
        rows.append(
            {
                "method": name,
                "loss_apart_from_plain": apart(losses[folder], losses[reference]),
                "loss_apart_between_seeds": between_seeds(losses[folder]),
                "rsum_apart_from_plain": apart(scores[folder], scores[reference]),
                "rsum_apart_between_seeds": between_seeds(scores[folder]),
                "rsum": last,
            }
        )
    if config.json:
        found = {"loss": losses, "rsum": scores}
        write_json(config.json, {"versions": versions(), "rows": rows, "curves": found})
    if config.chart:
        draw(config.chart, losses, scores)
    print(markdown(rows))


def curves(runs: Path, folder: str, point: Callable[[dict[str, Any]], float | None]) -> Curves:
    """The values that ``point`` extracts from each log line of a method."""
    found: Curves = {}
    for path in sorted(runs.glob(f"{folder}-seed*")):
        if path.is_dir():
            lines = RunFolder(path, writes=False).read_log()
            values = {line["step"]: value for line in lines if (value := point(line)) is not None}
            found[int(path.name.rpartition("seed")[2])] = values
    if not found:
        raise UserError(f"{runs}: holds no runs {folder}-seed*; create them with the command at the top of this script")
    return found


def loss(line: dict[str, Any]) -> float | None:
    """Loss of a training step."""
    return None if "split" in line else line.get("loss")


def rsum(line: dict[str, Any]) -> float | None:
    """rsum of an evaluation on the validation split."""
    return line.get("rsum") if line.get("split") == "val" else None


def apart(one: Curves, other: Curves) -> float:
    """Median over the steps of the largest distance between two curves with the same seed."""
    steps = next(iter(one.values()))
    return statistics.median(max(abs(one[seed][step] - other[seed][step]) for seed in one) for step in steps)


def between_seeds(curves: Curves) -> float:
    """Median over the steps of the largest distance between seeds."""
    steps = next(iter(curves.values()))
    pairs = list(combinations(curves.values(), 2))
    return statistics.median(max(abs(a[step] - b[step]) for a, b in pairs) for step in steps) if pairs else 0.0


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| method | loss: from plain | between seeds | val rsum: from plain | between seeds | last |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        losses = f"{row['loss_apart_from_plain']:.1e} | {row['loss_apart_between_seeds']:.1e}"
        scores = f"{row['rsum_apart_from_plain']:.1f} | {row['rsum_apart_between_seeds']:.1f}"
        spread = statistics.stdev(row["rsum"]) if len(row["rsum"]) > 1 else 0.0
        lines.append(f"| {row['method']} | {losses} | {scores} | {statistics.fmean(row['rsum']):.1f} ± {spread:.1f} |")
    return "\n".join(lines)


def draw(path: Path, losses: dict[str, Curves], scores: dict[str, Curves]) -> None:
    """Plot loss and rsum over steps: the mean over seeds, and their range as a band."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, title, found in zip(figure.subplots(1, 2), ("loss", "val rsum"), (losses, scores), strict=True):
        for number, (folder, (name, color)) in enumerate(LOOKS.items()):
            runs = list(found[folder].values())
            steps = list(runs[0])
            columns = [[curve[step] for curve in runs] for step in steps]
            mean = [statistics.fmean(column) for column in columns]
            # Different styles, so that curves that coincide stay visible.
            axes.plot(steps, mean, color=color, linestyle=("-", "--")[number], linewidth=3 - number, label=name)
            axes.fill_between(steps, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.12)
        axes.set(xlabel="step", title=f"{title}: mean and range of {len(runs)} seeds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run(main, Config)
