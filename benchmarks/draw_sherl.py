"""Draw docs/results/sherl.png, the diagram of SHERL in docs/architecture.md.

python benchmarks/draw_sherl.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FROZEN, TRAINED, EDGE = "#cfe3f2", "#fbd9a8", "#333333"


def box(axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """A labelled block; (x, y) is the middle of its left edge."""
    shape = FancyBboxPatch((x, y - 0.35), width, 0.7, boxstyle="round,pad=0.02", facecolor=colour, edgecolor=EDGE)
    axes.add_patch(shape)
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)


def arrow(axes, start: tuple[float, float], end: tuple[float, float], gradient: bool = False) -> None:
    """An arrow; thick where gradient flows back."""
    style = {"color": "#D55E00", "linewidth": 2.4} if gradient else {"color": EDGE, "linewidth": 1.2}
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, **style))


def main() -> None:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots()
    names = ["embed", "block 1", "block 2", "…", "block n-1"]
    for i, name in enumerate(names):
        box(axes, 1.7 * i, 2.6, 1.2, name, FROZEN)
        if i:
            arrow(axes, (1.7 * i - 0.45, 2.6), (1.7 * i - 0.03, 2.6))
        arrow(axes, (1.7 * i + 0.6, 2.22), (1.7 * i + 0.6, 1.43))
        box(axes, 1.7 * i, 1.05, 1.2, "reduce" if name != "…" else "…", TRAINED)
        arrow(axes, (1.7 * i + 0.6, 0.67), (1.7 * i + 0.6, 0.05), gradient=True)
    box(axes, 0, -0.35, 8.0, "merge: a layer's vote is divided by its redundancy; the deepest tap guides", TRAINED)
    box(axes, 9.6, -0.35, 1.2, "expand", TRAINED)
    arrow(axes, (8.03, -0.35), (9.55, -0.35), gradient=True)
    box(axes, 9.6, 2.6, 1.2, "block n", FROZEN)
    arrow(axes, (10.2, 0.03), (10.2, 2.2), gradient=True)
    arrow(axes, (8.03, 2.6), (9.55, 2.6))
    axes.text(8.8, 2.75, "gate", ha="center", fontsize=8)
    box(axes, 11.7, 2.6, 1.2, "pool", FROZEN)
    arrow(axes, (10.83, 2.6), (11.65, 2.6), gradient=True)
    box(axes, 13.6, 2.6, 1.5, "head, loss", TRAINED)
    arrow(axes, (12.93, 2.6), (13.55, 2.6), gradient=True)
    axes.text(4.0, 3.35, "early route: frozen, no gradient, no saved activations", ha="center", fontsize=10)
    axes.text(11.7, 3.35, "late route: frozen, gradient passes", ha="center", fontsize=10)
    axes.text(
        12.2, 0.6, "blue: frozen base\norange: trained\nthick: where gradient flows back", fontsize=9, va="center"
    )
    axes.set(xlim=(-0.3, 15.4), ylim=(-0.9, 3.7))
    axes.set_axis_off()
    FigureCanvasAgg(figure).print_png(str(Path(__file__).parents[1] / "docs" / "results" / "sherl.png"))


if __name__ == "__main__":
    main()
