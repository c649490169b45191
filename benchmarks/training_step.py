"""What a training step of SHERL takes beside LoRA, LoRA with checkpointing and full fine-tuning: bytes and time.

    python benchmarks/training_step.py --bases ViT-B-32 --batch_sizes 32 --json step.json --chart step.png
    python benchmarks/training_step.py --bases ViT-B-16 ViT-L-14 --batch_sizes 32 128 --json gpu.json      # on a GPU

A step is contrastive: both towers, InfoNCE, AdamW. Every timed step stands between two forwards of open_clip's own
without gradient, on texts padded to the base's longest, and the median ratio counts. On a GPU peaks come from the
allocator and steps run in bf16 autocast. Rows that are in the JSON file already are kept, so that a broken run goes on.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.sherl.tokens import SherlOptions
from vlkit.adapters.tuning import FullOptions, LoraOptions
from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.engine.hardware import keep_freed_memory, machine
from vlkit.engine.run_folder import versions
from vlkit.files import read_json, whole_file, write_json
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

MIB = 2**20
METHODS = {
    "linear": LinearOptions(),
    "SHERL, int8 taps, chunks of 8": SherlOptions(tap_dtype="int8", early_chunk=8),
    "SHERL, int8 taps": SherlOptions(tap_dtype="int8"),
    "SHERL": SherlOptions(),
    "SHERL, plain autograd": SherlOptions(lean=False),
    "SHERL on tokens, int8 taps, chunks of 8": SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=8),
    "SHERL on tokens": SherlOptions(handoff="tokens"),
    "LoRA + checkpointing": LoraOptions(checkpointing=True),
    "LoRA": LoraOptions(),
    "full + checkpointing": FullOptions(checkpointing=True),
    "full": FullOptions(),
}
MARKERS = "s^>ov<D*PXh"
"""Of the methods, in this order."""


@dataclass
class Config:
    """Measure training steps."""

    json: Path
    """Where the figures go; rows that are there already are not measured again."""
    bases: list[str] = field(default_factory=lambda: ["ViT-B-32"])
    """Names of bases; random weights do."""
    batch_sizes: list[int] = field(default_factory=lambda: [32])
    """Pairs a step."""
    text_lengths: list[int] = field(default_factory=lambda: [77])
    """Tokens a text: 77 is what CLIP reads at most, captions are trimmed to about 20."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Which methods; default: all."""
    repeats: int = 5
    """Timed steps of each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = CUDA if there is a device."""
    chart: Path | None = None
    """Also draw the rows to this PNG."""


def main(config: Config) -> None:
    keep_freed_memory()
    table = read_json(config.json) if config.json.exists() else {"rows": []}
    console = Console(stderr=True)
    for base in config.bases:
        for length in config.text_lengths:
            bench = None
            for size in config.batch_sizes:
                for name in config.methods:
                    place = {"base": base, "batch_size": size, "text_length": length, "method": name}
                    if any(place.items() <= row.items() for row in table["rows"]):
                        continue
                    bench = bench or ContrastiveBench(base, False, length, config.device)
                    table |= {"machine": machine(bench.device), "versions": versions()}
                    row = place | {"precision": bench.precision} | measure(bench, name, size, config.repeats)
                    table["rows"].append(row)
                    write_json(config.json, table)  # after each row: one that does not fit must not take the others
                    console.print(line(row), highlight=False)
    if config.chart:
        draw(config.chart, table)
    print(markdown(table["rows"]))


def measure(bench: ContrastiveBench, name: str, size: int, repeats: int) -> dict[str, Any]:
    """One row: bytes of a step and its time over that of inference; ``error`` where it does not fit."""
    options = METHODS[name]
    try:
        inference, model = bench.inference_peak(size), bench.model(options)
        memory = bench.memory(model, size)
        ratio = bench.time_over_inference(model, size, repeats)
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        model = None
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return {**asdict(memory), "inference_peak_bytes": inference, "time_over_inference": ratio}


def line(row: dict[str, Any]) -> str:
    """A row in one line."""
    where = f"{row['base']}, {row['batch_size']} pairs of {row['text_length']} tokens, {row['method']}"
    if "error" in row:
        return f"{where}: {row['error']}"
    peak = row["peak_bytes"] / row["inference_peak_bytes"]
    return (
        f"{where}: kept {row['saved_bytes'] / MIB:.1f} MiB, peak {peak:.2f} x, time {row['time_over_inference']:.2f} x"
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| base | pairs | tokens | method | kept MiB | peak MiB | peak / inference | time / inference |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        where = f"| {row['base']} | {row['batch_size']} | {row['text_length']} | {row['method']} "
        if "error" in row:
            lines.append(f"{where}| {row['error']} | | | |")
            continue
        kept, peak = row["saved_bytes"] / MIB, row["peak_bytes"] / MIB
        times = f"{row['peak_bytes'] / row['inference_peak_bytes']:.2f} | {row['time_over_inference']:.2f}"
        lines.append(f"{where}| {kept:.1f} | {peak:.1f} | {times} |")
    return "\n".join(lines)


def draw(path: Path, table: dict[str, Any]) -> None:
    """Time over peak, both relative to inference, a panel for each base, batch and text length."""
    rows = [row for row in table["rows"] if "error" not in row]
    keys = list(dict.fromkeys((row["base"], row["batch_size"], row["text_length"]) for row in rows))
    figure = Figure(figsize=(7.5, 4.2 * len(keys)), layout="constrained")
    for number, key in enumerate(keys):
        axes = figure.add_subplot(len(keys), 1, number + 1)
        for row in rows:
            if (row["base"], row["batch_size"], row["text_length"]) != key:
                continue
            x, y = row["peak_bytes"] / row["inference_peak_bytes"], row["time_over_inference"]
            ours, place = row["method"].startswith("SHERL"), list(METHODS).index(row["method"])
            color = "#0072B2" if ours else "#D55E00"
            axes.scatter(x, y, color=color, marker=MARKERS[place], s=50, alpha=0.8, label=row["method"])
        axes.axvline(1, color="grey", linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel="peak memory of a step / inference (log)", ylabel="time of a step / inference")
        axes.set_title(f"{key[0]}, {key[1]} pairs of {key[2]} tokens\n{table['machine']}", fontsize=10)
        axes.margins(x=0.25, y=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)  # labels beside the points would cover each other
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run(main, Config)
