"""The confusion matrix as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlkit.cli.show import visible
from vlkit.files import whole_file

MOST_NAMES, MOST_NUMBERS = 60, 20
"""Most classes whose names, and whose counts, are written into the image."""


def draw_confusion(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw shares of each right class (row) that were predicted as each class (column).

    Args:
        path: the PNG.
        matrix: counts int [C, C].
        classes: C names.
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(14.0, 4.0 + 0.22 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(classes) <= MOST_NAMES:
        # A "$" would start a formula.
        names = [visible(name).replace("$", r"\$")[:24] for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(classes) <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    right = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted class", ylabel="right class", title=f"{matrix.sum():,} images, {right:.1%} right")
    figure.colorbar(shown, ax=axes, shrink=0.7, label="share of the right class")
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
