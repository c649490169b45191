"""Frozen weights in fewer bytes: vlkit's own layers beside those of torchao and bitsandbytes.

    python benchmarks/stored_weights.py --json stored.json
    pip install torchao bitsandbytes          # rows of the libraries, where they are installed

A stack of frozen feed-forward blocks, through which gradient passes to the input as it does to a LoRA or a prompt:
bytes of the weights, bytes saved for backward, peak of forward and backward beyond the weights, relative error of the
output, and time against the same stack in float32, both in turns.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.encoders.stored_layers import store_weights
from vlkit.engine.hardware import machine
from vlkit.engine.report import versions
from vlkit.files import write_json
from vlkit.memory.step import peak_bytes, time_ratio

MIB = 2**20


@dataclass
class Config:
    """Measure stored weights."""

    json: Path | None = None
    """Output JSON file."""
    width: int = 1024
    """Width of a block; its hidden layer is four times as wide."""
    blocks: int = 6
    """Blocks of two linear layers."""
    tokens: int = 200
    """Tokens of the batch."""
    repeats: int = 5
    """Timed steps of each row, each between two in float32."""


def stack(config: Config) -> nn.Sequential:
    """The frozen blocks in float32, the same in every call."""
    torch.manual_seed(0)

    def block() -> nn.Module:
        inner = 4 * config.width
        return nn.Sequential(nn.Linear(config.width, inner), nn.GELU(), nn.Linear(inner, config.width))

    return nn.Sequential(*(block() for _ in range(config.blocks))).requires_grad_(False)


def of_vlkit(number_format: Any) -> Callable[[Config], nn.Module]:
    """A maker of the stack on vlkit's layers."""

    def make(config: Config) -> nn.Module:
        model = stack(config)
        store_weights(model, number_format)
        return model

    return make


def of_torchao(config: Config) -> nn.Module:
    """Weight-only int8 of torchao, a scale for each output row."""
    library: Any = importlib.import_module("torchao.quantization")
    model = stack(config)
    library.quantize_(model, library.Int8WeightOnlyConfig())
    return model.requires_grad_(False)


def of_bitsandbytes(number_format: str) -> Callable[[Config], nn.Module]:
    """A maker of the stack on bitsandbytes' layers."""

    def make(config: Config) -> nn.Module:
        library: Any = importlib.import_module("bitsandbytes.nn")
        model = stack(config)
        for block in model:
            for place in (0, 2):
                old: Any = block[place]  # pyright: ignore[reportIndexIssue]
                shape = old.in_features, old.out_features
                if number_format == "nf4":
                    new = library.Linear4bit(*shape, compute_dtype=torch.float32, quant_type="nf4")
                else:
                    new = library.Linear8bitLt(*shape, has_fp16_weights=False)
                new.load_state_dict(old.state_dict())
                block[place] = new.to("cpu").requires_grad_(False)  # pyright: ignore[reportIndexIssue]
        return model

    return make


MAKERS: dict[str, Callable[[Config], nn.Module]] = {
    "float32": stack,
    "vlkit bf16": of_vlkit("bf16"),
    "vlkit int8": of_vlkit("int8"),
    "torchao int8": of_torchao,
    "bitsandbytes int8": of_bitsandbytes("int8"),
    "vlkit nf4": of_vlkit("nf4"),
    "bitsandbytes nf4": of_bitsandbytes("nf4"),
}
"""Row -> its stack."""


def parts_of(tensor: Any) -> list[Tensor]:
    """The plain tensors of a tensor subclass, with bitsandbytes' scales; a plain tensor itself."""
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (Tensor, nn.Parameter):
        return [part for name in tensor.__tensor_flatten__()[0] for part in parts_of(getattr(tensor, name))]
    state = getattr(tensor, "quant_state", None)
    return [tensor, *([state.absmax] if state is not None else [])]


def storages(tensors: Any) -> dict[int, int]:
    """Address -> bytes of each storage."""
    found = [part.untyped_storage() for tensor in tensors for part in parts_of(tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def measure(model: nn.Module, x: Tensor, truth: Tensor) -> dict[str, Any]:
    """Bytes and error of one stack."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update(storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x.clone().requires_grad_())
    weights = storages([*model.parameters(), *model.buffers()])
    return {
        "weight_bytes": sum(weights.values()),
        "saved_bytes": sum(size for place, size in saved.items() if place not in weights),
        "peak_bytes": peak_bytes(lambda _: step(model, x), x.device),
        "error": ((output - truth).norm() / truth.norm()).item(),
    }


def step(model: nn.Module, x: Tensor) -> None:
    """Forward, and backward to the input."""
    model(x.clone().requires_grad_()).pow(2).sum().backward()


def main(config: Config) -> None:
    """Print the table of all rows whose library is installed."""
    models: dict[str, nn.Module] = {}
    for name, make in MAKERS.items():
        with contextlib.suppress(ModuleNotFoundError):
            models[name] = make(config)
    x = torch.randn(1, config.tokens, config.width)
    truth = models["float32"](x)
    rows = {name: measure(model, x, truth) for name, model in models.items()}
    table = Table("weights", "MiB", "saved MiB", "peak MiB", "error", "time / float32")
    for name, row in rows.items():
        run_own, run_plain = (partial(step, models[one], x) for one in (name, "float32"))
        row["time_over_float32"] = time_ratio(run_own, run_plain, config.repeats)
        sizes = (f"{row[key] / MIB:.1f}" for key in ("weight_bytes", "saved_bytes", "peak_bytes"))
        table.add_row(name, *sizes, f"{row['error']:.4f}", f"{row['time_over_float32']:.2f}")
    Console().print(table)
    if config.json:
        libraries = {name.split()[0] for name in rows} - {"float32", "vlkit"}
        known = versions() | {name: version(name) for name in sorted(libraries)}
        about = {"machine": machine(x.device), "versions": known, "rows": rows}
        write_json(config.json, about)


if __name__ == "__main__":
    run(main, Config)
