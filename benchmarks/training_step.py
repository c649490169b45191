"""Memory and time of a training step of SHERL, LoRA, LoRA with checkpointing and full fine-tuning.

    python benchmarks/training_step.py --bases ViT-B-32 --batch_sizes 32 --json step.json --chart step.png
    python benchmarks/training_step.py --bases ViT-B-16 ViT-L-14 --batch_sizes 32 128 --json gpu.json      # on a GPU

A step is contrastive: both towers, InfoNCE, AdamW. Each timed step runs between two forwards of open_clip's own model
without gradient, with texts padded to the context length, and the result is the median ratio. On a GPU, peaks come from
the allocator and steps run in bf16 autocast. Rows that the JSON file already holds are not measured again, so an
interrupted run can continue; rows follow the order of ``--bases``, ``--batch_sizes`` and ``--methods``, and none starts
after ``--seconds``.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import FullOptions, LoraOptions
from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.engine.compiled import compile_frozen
from vlkit.engine.hardware import keep_freed_memory, machine
from vlkit.engine.report import versions
from vlkit.files import read_json, whole_file, write_json
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

log = logging.getLogger(__name__)

MIB = 2**20
TOO_LARGE = "out of memory"
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
VARIANTS = {
    "SHERL, whole taps": SherlOptions(keep="all"),
    "SHERL, active values": SherlOptions(keep="active"),
    "SHERL, int8 taps, active values": SherlOptions(tap_dtype="int8", keep="active"),
    "SHERL, without fused kernels": SherlOptions(fused=False),
    "SHERL, batch at once": SherlOptions(early_chunk=0),
    **{f"SHERL, chunks of {count}": SherlOptions(early_chunk=count) for count in (16, 32, 64, 128)},
    "SHERL, int8 taps, batch at once": SherlOptions(tap_dtype="int8", early_chunk=0),
    "SHERL on tokens, fp32 taps": SherlOptions(handoff="tokens", tap_dtype="fp32"),
    "SHERL on tokens, int8 taps": SherlOptions(handoff="tokens", tap_dtype="int8"),
    "SHERL on tokens, batch at once": SherlOptions(handoff="tokens", early_chunk=0),
    **{
        f"SHERL on tokens, chunks of {count}": SherlOptions(handoff="tokens", early_chunk=count)
        for count in (16, 32, 64, 128)
    },
}
"""Variants that are only measured if named: values that the defaults choose on one device but not on another."""
COMPILED = ", compiled"
"""What the name of a method or variant ends with if frozen blocks are to run by torch.compile."""
MARKERS = "s^>ov<D*PXh12348pdH+x|_.,"
"""Plot markers of the methods and variants, in this order."""


@dataclass
class Config:
    """Measure training steps."""

    json: Path
    """Output JSON file; rows that it already holds are not measured again."""
    bases: list[str] = field(default_factory=lambda: ["ViT-B-32"])
    """Names of bases; random weights are sufficient. NAME:32,128 sets the batch sizes of one base."""
    batch_sizes: list[int] = field(default_factory=lambda: [32])
    """Pairs per step."""
    text_lengths: list[int] = field(default_factory=lambda: [77])
    """Tokens per text: 77 is CLIP's context length; captions are trimmed to about 20."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Methods to measure; default: all, without the variants of SHERL."""
    repeats: int = 5
    """Number of timed steps per row."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto = CUDA if available."""
    seconds: float = math.inf
    """Time limit: no new row starts after this many seconds."""
    chart: Path | None = None
    """Also draw the rows to this PNG file."""


def main(config: Config) -> None:
    keep_freed_memory()
    began = time.monotonic()
    table = read_json(config.json) if config.json.exists() else {"rows": []}
    # Failed rows are tried again, except those that ran out of memory.
    table["rows"] = [row for row in table["rows"] if row.get("error") in (None, TOO_LARGE)]
    console = Console(stderr=True, soft_wrap=True)
    bench, made_for = None, None
    wanted = missing(config, table["rows"])
    for number, place in enumerate(wanted):
        if time.monotonic() - began > config.seconds:
            console.print(f"time is up: {len(wanted) - number} rows were not measured")
            break
        if made_for != (place["base"], place["text_length"]):
            bench = None  # frees the previous base before the next one is built
            bench = ContrastiveBench(place["base"], False, place["text_length"], config.device)
            made_for = place["base"], place["text_length"]
        table |= {"machine": machine(bench.device), "versions": versions(), "cuda": torch.version.cuda}
        row = place | {"precision": bench.precision, "measured": datetime.date.today().isoformat()}
        row |= measure(bench, place["method"], place["batch_size"], config.repeats)
        table["rows"].append(row)
        write_json(config.json, table)  # after each row, so that a crash does not lose earlier rows
        console.print(line(row), highlight=False)
    if config.chart:
        draw(config.chart, table)
    print(markdown(table["rows"]))
    if any(row.get("error") not in (None, TOO_LARGE) for row in table["rows"]):
        raise SystemExit(1)


def missing(config: Config, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The requested measurements that are not in ``rows``, as the keys that identify a row."""
    names = ("base", "text_length", "batch_size", "method")
    places = []
    for base in config.bases:
        base, _, sizes = base.partition(":") if re.search(r":[\d,]+$", base) else (base, "", "")
        of_base = [int(size) for size in sizes.split(",")] if sizes else config.batch_sizes
        values = itertools.product([base], config.text_lengths, of_base, config.methods)
        places += [dict(zip(names, each, strict=True)) for each in values]
    return [place for place in places if not any(place.items() <= row.items() for row in rows)]


def measure(bench: ContrastiveBench, name: str, size: int, repeats: int) -> dict[str, Any]:
    """One row: bytes of a step, its time relative to inference, and both times in ms; ``error`` if it failed."""
    options = (METHODS | VARIANTS)[name.removesuffix(COMPILED)]
    try:
        inference, model = bench.inference_peak(size), bench.model(options)
        if name.endswith(COMPILED):
            compile_frozen(model)
        memory = bench.memory(model, size)
        times = bench.times(model, size, repeats)
    except torch.cuda.OutOfMemoryError:
        return {"error": TOO_LARGE}
    except Exception as error:  # a failing method must not stop the others
        log.exception("%s", name)
        return {"error": f"failed: {type(error).__name__}"}
    finally:
        model = None
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    milliseconds = {"step_ms": times.seconds * 1000, "inference_ms": times.reference_seconds * 1000}
    more = {"inference_peak_bytes": inference, "time_over_inference": times.ratio}
    return {**asdict(memory), **more, **milliseconds}


def line(row: dict[str, Any]) -> str:
    """A row as one line of text."""
    where = f"{row['base']}, {row['batch_size']} pairs of {row['text_length']} tokens, {row['method']}"
    if "error" in row:
        return f"{where}: {row['error']}"
    peak = row["peak_bytes"] / row["inference_peak_bytes"]
    time_taken = f"time {row['time_over_inference']:.2f} x, {row['step_ms']:.1f} ms"
    return f"{where}: saved {row['saved_bytes'] / MIB:.1f} MiB, peak {peak:.2f} x, {time_taken}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| base | pairs | tokens | method | saved MiB | peak MiB | peak / inference | time / inference | ms per step |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        where = f"| {row['base']} | {row['batch_size']} | {row['text_length']} | {row['method']} "
        if "error" in row:
            lines.append(f"{where}| {row['error']} | | | | |")
            continue
        kept, peak = row["saved_bytes"] / MIB, row["peak_bytes"] / MIB
        times = f"{row['peak_bytes'] / row['inference_peak_bytes']:.2f} | {row['time_over_inference']:.2f}"
        step = f"{row['step_ms']:.1f}" if "step_ms" in row else ""  # older rows only have the ratio
        lines.append(f"{where}| {kept:.1f} | {peak:.1f} | {times} | {step} |")
    return "\n".join(lines)


def draw(path: Path, table: dict[str, Any]) -> None:
    """Plot time over peak, both relative to inference, with a panel per base, batch size and text length."""
    rows = [row for row in table["rows"] if "error" not in row]
    keys = list(dict.fromkeys((row["base"], row["batch_size"], row["text_length"]) for row in rows))
    figure = Figure(figsize=(7.5, 4.2 * len(keys)), layout="constrained")
    for number, key in enumerate(keys):
        axes = figure.add_subplot(len(keys), 1, number + 1)
        for row in rows:
            if (row["base"], row["batch_size"], row["text_length"]) != key:
                continue
            x, y = row["peak_bytes"] / row["inference_peak_bytes"], row["time_over_inference"]
            ours, place = (
                row["method"].startswith("SHERL"),
                list(METHODS | VARIANTS).index(row["method"].removesuffix(COMPILED)),
            )
            color = "#0072B2" if ours else "#D55E00"
            axes.scatter(x, y, color=color, marker=MARKERS[place % len(MARKERS)], s=50, alpha=0.8, label=row["method"])
        axes.axvline(1, color="grey", linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel="peak memory of a step / inference (log)", ylabel="time of a step / inference")
        axes.set_title(f"{key[0]}, {key[1]} pairs of {key[2]} tokens\n{table['machine']}", fontsize=10)
        axes.margins(x=0.25, y=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)  # labels next to the points would overlap
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run(main, Config)
