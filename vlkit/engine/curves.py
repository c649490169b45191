"""Training curves as a PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkit.files import whole_file


def draw_curves(path: Path, lines: Sequence[Mapping[str, Any]], primary: str) -> None:
    """Draw loss, learning rate and the metric ``primary`` over steps.

    Args:
        path: the PNG.
        lines: the lines of ``log.jsonl``; may be empty.
        primary: name of the metric, a key of the lines that have ``split``.
    """
    # Importing matplotlib takes most of a second, and serving a model draws no curves.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in lines if "split" not in line]
    evaluations = [line for line in lines if "split" in line]
    figure = Figure(figsize=(12, 3.5))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.16, top=0.9, wspace=0.25)
    panels = (("loss", train, "."), ("lr", train, ""), (primary, evaluations, "o"))
    for axes, (key, source, marker) in zip(figure.subplots(1, 3), panels, strict=True):
        points = [(line["step"], line[key]) for line in source if line.get(key) is not None]
        axes.plot(*zip(*points, strict=True), marker=marker) if points else None
        axes.set(xlabel="step", title=key if source is train else f"{key} ({_splits(source)})")
        axes.grid(alpha=0.3)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def _splits(lines: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(line["split"] for line in lines)) or "no evaluation yet"
