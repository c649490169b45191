"""Memory of a training step of each method (saved activations and peak), measured or predicted.

    python tasks/memory.py --adapter.kind all
    python tasks/memory.py --base ViT-L-14 --adapter.kind all --batch_size 256 --gpu_memory 24GB

The step is contrastive: both towers, InfoNCE, AdamW, on a synthetic batch (:mod:`vlkit.tasks.retrieval.step_bench`).
With ``--task classification`` it is the image tower alone with a linear head and cross-entropy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vlkit.adapters import ADAPTERS
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import LoraOptions
from vlkit.byte_sizes import parse_size
from vlkit.cli.config import kinds, run
from vlkit.cli.show import SIMPLE, Console, Table, track
from vlkit.encoders.stored_weights import WeightFormat, with_format
from vlkit.engine.hardware import machine
from vlkit.engine.report import versions
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.memory import CUDA_CONTEXT_BYTES, CUDA_GAPS, frozen_bytes, largest_batch, tensor_budget
from vlkit.tasks.classification.step_bench import ClassifierBench
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

MIB = 2**20
BENCHES = {"retrieval": ContrastiveBench, "classification": ClassifierBench}


@dataclass
class AllOptions:
    """Every method with its default options, SHERL in its variants, LoRA also with checkpointing."""

    kind: Literal["all"] = "all"


@dataclass
class Config:
    """Show saved activations and peak memory of one training step, compared with inference and full fine-tuning."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip, hf:NAME_OR_FOLDER (CLIP or SigLIP of
    transformers), photos, or a pair timm:NAME+hf:NAME."""
    task: Literal["retrieval", "classification"] = "retrieval"
    """retrieval: both towers, contrastive loss; classification: the image tower and a linear head for 100 classes."""
    base_weights: WeightFormat = "fp32"
    """Format of the frozen base's matrices: fp32, bf16, int8 or nf4 (QLoRA's 4 bits)."""
    adapter: Any = kinds({**ADAPTERS, "all": AllOptions}, "sherl")
    batch_size: int = 32
    """Pairs (or images) per step."""
    text_length: int | None = None
    """Tokens per text; default: the base's context length (training pads only to the longest text of the batch)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on; auto = CUDA if available."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Number format; auto = mixed on CUDA, 32-true on the CPU."""
    estimate: bool = False
    """Predict without weights and computation, so without times."""
    active_share: float = 1.0
    """For predictions of SHERL in the joint space: share of the taps' values that are saved. It depends on the data:
    about 0.25 with untrained weights; 1 = upper bound, as on CUDA, where all are saved."""
    gpu_memory: str | None = None
    """Also predict the largest batch that fits on a GPU of this size, such as 8GB (= 2**33 bytes); implies
    --estimate.
    """
    repeats: int = 3
    """Timed steps of each method; 0 = no times."""
    json: Path | None = None
    """Also write the table to this file, sizes in bytes."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("text_length", 1), ("repeats", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value}: must be at least {least}")
        if not 0 < self.active_share <= 1:
            raise UserError(f"--active_share {self.active_share}: give a share above 0, at most 1")
        if self.gpu_memory is not None:
            parse_size("--gpu_memory", self.gpu_memory)


def main(config: Config) -> None:
    predicts = config.estimate or config.gpu_memory is not None
    base = with_format(config.base, config.base_weights)
    bench = BENCHES[config.task](
        base, predicts, config.text_length, config.device, config.precision, config.active_share
    )
    table: dict[str, Any] = {
        **{key: getattr(config, key) for key in ("task", "base", "base_weights", "batch_size", "gpu_memory")},
        **{"text_length": bench.text_length, "image_size": list(bench.base.preprocess.size)},
        **{"device": str(bench.device), "precision": bench.precision, "estimated": bench.predicts},
        **{"active_share": bench.active_share if bench.predicts else None},
        **{"machine": machine(bench.device), "versions": versions(), "rows": []},
    }
    errors = Console(stderr=True)
    for options in track(methods(config.adapter), "methods", console=errors, transient=True):
        try:
            table["rows"].append(row_of(bench, options, config))
        except UserError as error:
            if config.adapter.kind != "all":
                raise
            errors.print(f"{label(options)}: left out ({error})", highlight=False)
        compare(table["rows"])
        if config.json:  # after every row: a method that does not fit must not lose the others
            write_json(config.json, table)
    show(table)


def methods(adapter: Any) -> list[Any]:
    """The options of each row."""
    if adapter.kind != "all":
        return [adapter]
    return [
        *(options() for options in ADAPTERS.values()),
        SherlOptions(tap_dtype="int8", early_chunk=8),
        SherlOptions(lean=False),
        SherlOptions(handoff="tokens"),
        SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=8),
        SherlOptions(handoff="tokens", lean=False),
        LoraOptions(checkpointing=True),
    ]


def label(options: Any) -> str:
    """Name of a row: the kind, and every option that differs from its default."""
    fields = [field for field in dataclasses.fields(options) if getattr(options, field.name) != field.default]
    return " ".join([options.kind, *(f"{field.name}={getattr(options, field.name)}" for field in fields)])


def row_of(bench: ContrastiveBench, options: Any, config: Config) -> dict[str, Any]:
    """Measure or predict one method."""
    model, size = bench.model(options), config.batch_size
    try:
        inference, memory = bench.inference_peak(size), bench.memory(model, size)
        timed = config.repeats > 0 and not bench.predicts
        ratio = bench.time_over_inference(model, size, config.repeats) if timed else None
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"--batch_size {size}: {label(options)} does not fit on this GPU; use a smaller batch, or --estimate"
        ) from None
    row = {
        **{"method": label(options), "options": dataclasses.asdict(options)},
        **{key: getattr(memory, key) for key in ("trainable_parameters", "total_parameters")},
        **{key: getattr(memory, key) for key in ("parameter_bytes", "optimizer_bytes", "peak_bytes", "total_bytes")},
        "weight_bytes": frozen_bytes(model),
        **{"saved_activation_bytes": memory.saved_bytes, "inference_peak_bytes": inference},
        **{"peak_over_inference": memory.peak_bytes / inference, "time_over_inference": ratio},
    }
    if config.gpu_memory is not None:
        budget = tensor_budget(parse_size("--gpu_memory", config.gpu_memory))
        row["largest_batch"] = largest_batch(lambda trial: bench.memory(model, trial).total_bytes, budget)
    return row


def compare(rows: list[dict[str, Any]]) -> None:
    """Add each row's share of full fine-tuning, once that is known."""
    full = next((row for row in rows if row["method"] == "full"), None)
    for row in rows if full else ():
        row["saved_of_full"] = row["saved_activation_bytes"] / full["saved_activation_bytes"]
        row["peak_of_full"] = row["peak_bytes"] / full["peak_bytes"]


def show(table: dict[str, Any]) -> None:
    """Print the rows and the meaning of the columns."""
    rows, gpu = table["rows"], table["gpu_memory"]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "trained": lambda row: f"{row['trainable_parameters'] / 1e6:.2f} M",
        "saved\nMiB": lambda row: mib(row["saved_activation_bytes"]),
        "peak\nMiB": lambda row: mib(row["peak_bytes"]),
        "all\nMiB": lambda row: mib(row["total_bytes"]),
        "peak of\ninference": lambda row: f"{row['peak_over_inference']:.2f} x",
    }
    if any("peak_of_full" in row for row in rows):
        columns["saved of\nfull"] = lambda row: f"{row['saved_of_full']:.1%}"
        columns["peak of\nfull"] = lambda row: f"{row['peak_of_full']:.1%}"
    if any(row["time_over_inference"] for row in rows):
        columns["time of\ninference"] = lambda row: f"{row['time_over_inference']:.2f} x"
    if gpu:
        columns[f"largest batch\nin {gpu}"] = lambda row: str(row["largest_batch"] or "none")
    how = "predicted" if table["estimated"] else f"measured on {table['machine']}"
    pairs = table["task"] == "retrieval"
    size = f"{table['batch_size']} pairs, {table['text_length']} tokens" if pairs else f"{table['batch_size']} images"
    stored = "" if table["base_weights"] == "fp32" else f" in {table['base_weights']}"
    title = f"{table['base']}{stored}, {size}, {table['precision']}, {how}"
    grid = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    grid.add_column("method", no_wrap=True)
    for name in columns:
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(row["method"], *(text(row) for text in columns.values()))
    console = Console()
    console.print(grid)
    notes = [
        "saved: activations saved for backward. peak: largest sum beyond parameters and optimizer state, with "
        f"gradients. inference: the forward of {'both towers' if pairs else 'the image tower'} in the base's own "
        f"library, without gradient{', on padded texts' if pairs else ''}. "
        "all: peak, parameters and optimizer state."
    ]
    if table["estimated"]:
        notes += [
            f"what SHERL in the joint space saves depends on the data: predicted for {table['active_share']:g} of the "
            "values of its taps (--active_share; 1 = upper bound)"
        ]
    if gpu:
        what = "pairs" if pairs else "images"
        notes += [
            f"{table['batch_size']} {what} fit in {gpu}: {fitting(rows, table['batch_size'], True)}",
            f"they do not fit: {fitting(rows, table['batch_size'], False)}",
            f"of the GPU, {CUDA_CONTEXT_BYTES // MIB} MiB are reserved for CUDA and {CUDA_GAPS:.0%} for fragmentation",
        ]
    for note in notes:
        console.print(note, highlight=False)


def mib(size: int) -> str:
    """Bytes in MiB, with significant digits only."""
    return f"{size / MIB:.0f}" if size >= 100 * MIB else f"{size / MIB:.1f}"


def fitting(rows: list[dict[str, Any]], size: int, fits: bool) -> str:
    """The methods whose largest batch reaches ``size`` (``fits``), or does not."""
    return ", ".join(row["method"] for row in rows if (row["largest_batch"] >= size) == fits) or "no method"


if __name__ == "__main__":
    run(main, Config)
