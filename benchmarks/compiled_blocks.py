"""Does torch.compile pay for the frozen blocks of a tower? Their forward without gradient, compiled and not, in turn.

    python benchmarks/compiled_blocks.py                                            # ViT-B-32 on the CPU
    python benchmarks/compiled_blocks.py --base ViT-L-14 --batch_size 128 --device cuda --json FILE

One block is compiled and serves all of them: their weights are inputs of the compiled code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vlkit.cli.config import run
from vlkit.encoders.load import load_base
from vlkit.encoders.staged import freeze
from vlkit.encoders.towers.open_clip import ClipVision, batch_first, run_resblock
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.memory.step import times_in_turns


@dataclass
class Config:
    """Time of a tower's frozen blocks with and without torch.compile."""

    base: str = "ViT-B-32"
    """Base of open_clip; random weights will do."""
    batch_size: int = 16
    """Images at once."""
    repeats: int = 9
    """Runs of each, in turn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; mixed bf16 on CUDA, fp32 on the CPU."""
    json: Path | None = None
    """Also write the results to this JSON file."""


def main(config: Config) -> None:
    fabric = make_fabric(config.device, "auto")
    base = load_base(config.base)
    if not isinstance(base.image, ClipVision):
        raise UserError(
            f"--base {config.base}: {base.image.kind} has no blocks of open_clip; give a ViT such as ViT-B-32"
        )
    tower: Any = fabric.setup_module(freeze(base.image)).module
    pixels = torch.rand(config.batch_size, 3, *base.preprocess.size, device=fabric.device)

    def blocks(of_block: Callable[..., Tensor], hidden: Tensor) -> Tensor:
        transformer = tower.model.transformer
        for block in transformer.resblocks:
            hidden = of_block(block, hidden, batch_first(transformer))
        return hidden

    compiled = torch.compile(run_resblock, dynamic=False)
    with torch.no_grad(), fabric.autocast():
        hidden = tower.embed(pixels).hidden
        eager = blocks(run_resblock, hidden).cpu()
        began = time.perf_counter()
        again = blocks(compiled, hidden).cpu()  # waits for the device
        compiling = time.perf_counter() - began
        times = times_in_turns(lambda: blocks(compiled, hidden), lambda: blocks(run_resblock, hidden), config.repeats)
    found: dict[str, Any] = {
        "base": config.base,
        "images": config.batch_size,
        "device": torch.cuda.get_device_name() if fabric.device.type == "cuda" else "cpu",
        "first run s": round(compiling, 1),
        "eager ms": round(1e3 * times.reference_seconds, 1),
        "compiled over eager": round(times.ratio, 2),
        "largest difference over largest value": float(f"{(again - eager).abs().max() / eager.abs().max():.1e}"),
    }
    print(", ".join(f"{name}: {value}" for name, value in found.items()))
    if config.json:
        write_json(config.json, found)


if __name__ == "__main__":
    run(main, Config)
