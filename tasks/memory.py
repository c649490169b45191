"""``tasks/memory.py``: what a training step of each method keeps for backward and peaks at, measured or predicted.

One step is contrastive: both towers, InfoNCE, AdamW. Weights and data do not matter to memory, so the batch is made up.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.sherl import SherlOptions
from vlkit.adapters.tuning import LoraOptions
from vlkit.config import kinds, run
from vlkit.distributed import make_fabric
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.heads.embedding import EmbeddingHead, HeadOptions, TwoTower
from vlkit.losses import gather_pairs, info_nce
from vlkit.memory import (
    StepMemory,
    fake_copy,
    fake_tensors,
    largest_batch,
    measure_step,
    shape_base,
    time_over_inference,
)
from vlkit.runlog import versions
from vlkit.training import make_optimizer

MIB = 2**20
# What a GPU process takes besides tensors: the CUDA context and library workspaces, and gaps between tensors.
CUDA_CONTEXT_BYTES = 600 * MIB
CUDA_GAPS = 0.05


@dataclass
class AllOptions:
    """Every method with its default options, SHERL also in the joint space, LoRA also with checkpointing."""

    kind: Literal["all"] = "all"


@dataclass
class Config:
    """Show what one training step of a method keeps for backward and peaks at, beside plain inference and full tuning."""

    base: str = "tiny"
    """Base model: tiny, ARCH, ARCH:TAG or ARCH:FILE of open_clip."""
    adapter: Any = kinds({**ADAPTERS, "all": AllOptions}, "sherl")
    batch_size: int = 32
    """Pairs a step."""
    text_length: int | None = None
    """Tokens a text, default: the longest the base reads; training cuts texts at the longest of the batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = CUDA if there is a device."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Number format; auto = mixed on CUDA, 32-true on the CPU."""
    estimate: bool = False
    """Predict in seconds, without weights and without computing; no times then."""
    gpu_memory: str | None = None
    """Also predict the largest batch that a GPU of this size holds, such as 8GB (= 2**33 bytes); implies estimate."""
    repeats: int = 3
    """Timed steps; 0 = no times."""
    json: Path | None = None
    """Also write the table to this file, sizes in bytes."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("repeats", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if self.gpu_memory is not None:
            parse_size(self.gpu_memory)


def main(config: Config) -> None:
    """Measure or predict every chosen method, one row each."""
    console = Console()
    bench = Bench(config)
    table: dict[str, Any] = {
        **{key: getattr(config, key) for key in ("base", "batch_size", "gpu_memory")},
        **{"text_length": bench.text_length, "image_size": list(bench.base.preprocess.size)},
        **{"device": str(bench.device), "precision": bench.precision, "estimated": bench.predicts},
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
        if config.json:
            write_json(config.json, table)  # after every row: one that does not fit must not take the others with it
    show(console, table)


def methods(adapter: Any) -> list[Any]:
    """The options of each row."""
    if adapter.kind != "all":
        return [adapter]
    plain = [options() for options in ADAPTERS.values()]
    return [*plain, SherlOptions(handoff="pooled"), LoraOptions(checkpointing=True)]


def label(options: Any) -> str:
    """Name of a row: the kind, and every option that is not at its default."""
    given = [
        f"{field.name}={getattr(options, field.name)}"
        for field in dataclasses.fields(options)
        if field.name != "kind" and getattr(options, field.name) != field.default
    ]
    return " ".join([options.kind, *given])


class Bench:
    """Builds the step of any method on one base.

    Attributes:
        base: never changed, every method gets a copy; on the meta device if steps are only predicted.
        device: where steps run, or are predicted to run.
        precision: number format of the step.
        text_length: tokens a text.
    """

    def __init__(self, config: Config) -> None:
        self._fabric = make_fabric(config.device, config.precision)
        self.device = self._fabric.device
        self.precision = self._fabric._precision.precision
        self.predicts = config.estimate or config.gpu_memory is not None
        self.base: ClipBase = shape_base(config.base) if self.predicts else load_base(config.base)
        self.text_length = config.text_length or context_length(self.base)

    def model(self, options: Any) -> TwoTower:
        """Both towers with the method in them."""
        base = self.base
        with torch.device("meta") if self.predicts else contextlib.nullcontext():
            image, text = options.build(copy.deepcopy(base.image)), options.build(copy.deepcopy(base.text))
            heads = EmbeddingHead(base.image, HeadOptions()), EmbeddingHead(base.text, HeadOptions())
            model = TwoTower(image, text, *heads, base.logit_scale, 0.0).train()
        model.logit_bias.requires_grad_(False)  # InfoNCE has no bias
        return model if self.predicts else model.to(self.device)

    def step(self, model: TwoTower, batch_size: int) -> tuple[TwoTower, Callable[[], Tensor], torch.optim.Optimizer]:
        """The model, the forward of one training step on a made-up batch, and the optimizer."""
        with self.device:
            pixels = torch.zeros(batch_size, 3, *self.base.preprocess.size)
            ids = made_up_ids(self.base, batch_size, self.text_length)
            groups = torch.arange(batch_size)

        def loss_of() -> Tensor:
            with self._fabric.autocast():
                images, texts, scale, _ = model(pixels, ids)
                return info_nce(gather_pairs(images, texts, groups), scale)

        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return model, loss_of, make_optimizer(parameters, 1e-4, 0.01)

    def predict(self, model: TwoTower, batch_size: int) -> StepMemory:
        """The memory of a step of a model on the meta device."""
        with fake_tensors():
            return measure_step(*self.step(fake_copy(model, self.device), batch_size))


def context_length(base: ClipBase) -> int:
    """Tokens of the longest text a base reads."""
    config = open_clip.get_model_config(base.name.partition(":")[0].replace("/", "-"))
    if config is None:
        return base.tokenize(["a"]).shape[1]
    return config["text_cfg"].get("context_length", DEFAULT_CONTEXT_LENGTH)


def made_up_ids(base: ClipBase, batch_size: int, length: int) -> Tensor:
    """Ids [batch_size, length] int64 of texts without padding: words, and an end of text where the tower looks for it."""
    ids = torch.full((batch_size, length), 5)
    by_id = getattr(base.text.model, "pool_type", None) == "eos"
    ids[:, -1] = base.text.model.eos_id if by_id else 6  # else the largest id ends the text
    return ids


def row_of(bench: Bench, options: Any, config: Config) -> dict[str, Any]:
    """Measure or predict one method."""
    model, ratio = bench.model(options), None
    if bench.predicts:
        memory = bench.predict(model, config.batch_size)
    else:
        try:
            step = bench.step(model, config.batch_size)
            memory = measure_step(*step)
            ratio = time_over_inference(*step[1:], config.repeats) if config.repeats else None
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"--batch_size {config.batch_size}: {label(options)} does not fit on this GPU; "
                "take a smaller batch or predict with --estimate"
            ) from None
    row = {
        **{"method": label(options), "options": dataclasses.asdict(options)},
        **{"trainable_parameters": memory.trainable_parameters, "total_parameters": memory.total_parameters},
        **{"parameter_bytes": memory.parameter_bytes, "optimizer_bytes": memory.optimizer_bytes},
        **{"saved_activation_bytes": memory.saved_bytes, "peak_bytes": memory.peak_bytes},
        **{"inference_peak_bytes": memory.inference_peak_bytes, "total_bytes": memory.total_bytes},
        "peak_over_inference": memory.peak_bytes / memory.inference_peak_bytes,
        "time_over_inference": ratio,
    }
    if config.gpu_memory is not None:
        budget = int((parse_size(config.gpu_memory) - CUDA_CONTEXT_BYTES) / (1 + CUDA_GAPS))
        row["largest_batch"] = largest_batch(lambda size: bench.predict(model, size).total_bytes, budget)
    return row


def compare(rows: list[dict[str, Any]]) -> None:
    """Put every row's share of full fine-tuning into it, once that is known."""
    full = next((row for row in rows if row["method"] == "full"), None)
    for row in rows if full else ():
        row["saved_of_full"] = row["saved_activation_bytes"] / full["saved_activation_bytes"]
        row["peak_of_full"] = row["peak_bytes"] / full["peak_bytes"]


def show(console: Console, table: dict[str, Any]) -> None:
    """Print the rows and what the columns mean."""
    how = "predicted" if table["estimated"] else "measured"
    title = f"{table['base']}, {table['batch_size']} pairs, {table['text_length']} tokens, {table['precision']}, {how}"
    grid = Table(title=f"{title} ({table['machine']})", title_justify="left")
    grid.add_column("method")
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("trained", lambda row: f"{row['trainable_parameters'] / 1e6:.2f} M"),
        ("kept MiB", lambda row: f"{row['saved_activation_bytes'] / MIB:.1f}"),
        ("peak MiB", lambda row: f"{row['peak_bytes'] / MIB:.1f}"),
        ("all MiB", lambda row: f"{row['total_bytes'] / MIB:.0f}"),
        ("x inference", lambda row: f"{row['peak_over_inference']:.2f}"),
    ]
    if all("peak_of_full" in row for row in table["rows"]):
        columns += [
            ("kept of full", lambda row: f"{row['saved_of_full']:.0%}"),
            ("peak of full", lambda row: f"{row['peak_of_full']:.0%}"),
        ]
    if any(row["time_over_inference"] for row in table["rows"]):
        columns.append(("time x inference", lambda row: f"{row['time_over_inference']:.2f}"))
    if table["gpu_memory"]:
        columns.append((f"largest batch in {table['gpu_memory']}", lambda row: str(row["largest_batch"] or "none fits")))
    for name, _ in columns:
        grid.add_column(name, justify="right")
    for row in table["rows"]:
        grid.add_row(row["method"], *(text(row) for _, text in columns))
    console.print(grid)
    console.print(
        "kept: activations held for backward. peak: most at once beyond parameters and optimizer state, gradients\n"
        "included; x inference: that over a forward without gradient. all: with parameters and optimizer state.",
        highlight=False,
    )
    if table["gpu_memory"]:
        say_what_fits(console, table)


def say_what_fits(console: Console, table: dict[str, Any]) -> None:
    """Which methods hold the batch size asked for on the GPU asked for."""
    size = table["batch_size"]
    fits = [row["method"] for row in table["rows"] if row["largest_batch"] >= size]
    others = [row["method"] for row in table["rows"] if row["largest_batch"] < size]
    console.print(f"{size} pairs fit in {table['gpu_memory']}: {', '.join(fits) or 'no method'}", highlight=False)
    if others:
        console.print(f"they do not fit: {', '.join(others)}", highlight=False)
    console.print(
        f"of the GPU, {CUDA_CONTEXT_BYTES // MIB} MiB are set aside for CUDA itself and {CUDA_GAPS:.0%} for gaps between tensors",
        highlight=False,
    )


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def parse_size(text: str) -> int:
    """``8GB``, ``24 GiB``, ``512MB`` -> bytes; units are powers of 1024, as GPUs are sold.

    Raises:
        UserError: not a number with a unit.
    """
    units = {"M": 2**20, "G": 2**30, "T": 2**40}
    bare = text.strip().upper().removesuffix("B").removesuffix("I")
    try:
        size = float(bare[:-1]) * units[bare[-1]]
    except (ValueError, KeyError, IndexError):
        raise UserError(f"--gpu_memory {text}: not a size; write a number with a unit, such as 8GB or 512MB") from None
    return int(size)


if __name__ == "__main__":
    run(main, Config)
