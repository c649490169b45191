"""``python -m vlkit.adapters.published FILE --output DIR``: convert published weights to an adapter folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlkit.adapters.adapter_files import ADAPTER_FORMAT, ADAPTER_VERSION, CONFIG_FILE, MODEL_FILE, AdapterFiles
from vlkit.adapters.options import adapter_options
from vlkit.adapters.published.convert import Block, read_published
from vlkit.cli.config import positional, run
from vlkit.cli.show import visible
from vlkit.encoders.load import load_base
from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError
from vlkit.files import whole_file, write_json


@dataclass
class Config:
    """Convert published weights of SHERL, UniPT, LST, VQT, SynQT, DTL or R2-Tuning to an adapter folder.

    With --base, the blocks of both towers become an image-text model for vlkit.load and the scripts of the retrieval
    task. Without it, the folder holds each block under vlkit's tensor names, with the options that build it.
    """

    file: Path = positional()
    """Published checkpoint as safetensors: the weights of one block, or a whole model."""
    output: Path  # pyright: ignore[reportGeneralTypeIssues]  # positional() gives no default
    """Output folder for vlkit_adapter.json and vlkit_adapter.safetensors."""
    base: str | None = None
    """Base that the blocks were trained on, such as ViT-B-32:openai."""


def main(config: Config) -> None:
    """Find the blocks, print them, and write the folder."""
    if AdapterFiles.find(config.output).config.exists():
        raise UserError(f"--output {config.output}: already holds an adapter; give another folder")
    blocks = read_published(config.file)
    for block in blocks:
        print(visible(f"{block.flavour}: {len(block.tensors)} tensors under {block.prefix or '(no prefix)'}"))
    about, tensors = _blocks_alone(blocks) if config.base is None else _on_base(blocks, config.base)
    about = {
        "format": ADAPTER_FORMAT,
        "format_version": ADAPTER_VERSION,
        **about,
        "metrics": {},
        "source": config.file.name,
    }
    with whole_file(config.output / MODEL_FILE) as path:
        save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, path, {"format": "pt"})
    write_json(config.output / CONFIG_FILE, about)
    print(visible(f"wrote {config.output}"))


def _blocks_alone(blocks: list[Block]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of an adapter folder without a base."""
    named = {f"{block.prefix}{block.flavour.replace('/', '_')}": block for block in blocks}
    adapters = {name: block.options() for name, block in named.items()}
    tensors = {f"{name}.{key}": tensor for name, block in named.items() for key, tensor in block.tensors.items()}
    return {"task": None, "base": {}, "adapters": adapters}, tensors


def _on_base(blocks: list[Block], name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a retrieval model: one block on each tower, the base's own pooling, no trained head."""
    base = load_base(name)
    chosen = {tower: _fitting(blocks, getattr(base, tower), f"{tower} tower of {name}") for tower in ("image", "text")}
    options = {tower: asdict(adapter_options(block.options())) for tower, block in chosen.items()}
    if options["image"] != options["text"]:
        raise UserError(f"--base {name}: the two towers need different options; convert without --base")
    tensors = {f"{t}.adapter.{key}": tensor for t, block in chosen.items() for key, tensor in block.tensors.items()}
    tensors["logit_scale"] = torch.tensor(float(base.logit_scale))
    tensors["logit_bias"] = torch.tensor(-10.0 if base.logit_bias is None else float(base.logit_bias))
    about = {
        "task": "retrieval",
        "base": {tower: {**identity, "load": name} for tower, identity in base.identity.items()},
        "adapters": options,
        "head": {"pool": "base", "projection": False, "dim": 0},
        "preprocess": base.preprocess.to_dict(),
    }
    return about, tensors


def _fitting(blocks: list[Block], encoder: StagedEncoder, where: str) -> Block:
    """The block whose tensor names and shapes match its method on this tower."""
    found = []
    for block in blocks:
        try:
            adapter: Any = adapter_options(block.options()).build(encoder, "pooled").adapter
        except UserError as error:
            found.append(f"{block.flavour} ({error})")
            continue
        wanted = {name: tensor.shape for name, tensor in adapter.state_dict().items()}
        if wanted == {name: tensor.shape for name, tensor in block.tensors.items()}:
            return block
        found.append(f"{block.flavour} (its shapes differ)")
    raise UserError(f"no block in the file fits the {where}: {'; '.join(found)}; give the base it was trained on")


if __name__ == "__main__":
    run(main, Config)
