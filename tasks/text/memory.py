"""Memory of a text-to-text training step of T5 with each method: predicted, or measured with random weights.

    python tasks/text/memory.py --text_base t5-base
    python tasks/text/memory.py --text_base t5-base --batch_size 4 --estimate false

The setting is that of the LST and SHERL studies on GLUE: 100 texts of 128 tokens, labels of a few tokens, AdamW, single
precision. LST keeps the layers of its study.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkit.adapters import ADAPTERS
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import BitfitOptions, FullOptions, LoraOptions
from vlkit.cli.config import kinds, run
from vlkit.cli.show import SIMPLE, Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.text.step_bench import T5Bench

MIB = 2**20
KEPT = {
    "t5-base": (1, 2, 3, 5, 6, 7, 9, 10, 11),
    "t5-large": tuple(range(1, 24, 2)),
    "t5-3b": (23,),
}
"""Layers with a side block in LST's study; other bases keep all."""


@dataclass
class AllOptions:
    """Full fine-tuning, LoRA, BitFit, LST and SHERL, with the studies' options."""

    kind: Literal["all"] = "all"


@dataclass
class Config:
    """Show saved activations and peak memory of one text-to-text training step of T5."""

    text_base: str = "t5-base"
    """T5: t5-small, t5-base, t5-large or t5-3b (sizes known offline, random weights), tiny, a name of the hub or a
    folder."""
    adapter: Any = kinds({**ADAPTERS, "all": AllOptions}, "all")
    batch_size: int = 100
    """Texts per step."""
    source_tokens: int = 128
    """Tokens of every text that is read."""
    target_tokens: int = 4
    """Tokens of every text that is written."""
    estimate: bool = True
    """Predict without weights and computation; false: run the step."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """Device to predict for, or to compute on."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Number format."""
    json: Path | None = None
    """Also write the table to this file, sizes in bytes."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "source_tokens", "target_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")


def main(config: Config) -> None:
    bench = T5Bench(
        config.text_base, config.estimate, config.source_tokens, config.target_tokens, config.device, config.precision
    )
    rows: list[dict[str, Any]] = []
    for options in methods(config.adapter, config.text_base):
        memory = bench.memory(bench.model(options), config.batch_size)
        rows.append(
            {
                **{"method": options.kind, "options": dataclasses.asdict(options)},
                **{key: getattr(memory, key) for key in ("trainable_parameters", "total_parameters", "peak_bytes")},
                **{"saved_activation_bytes": memory.saved_bytes, "total_bytes": memory.total_bytes},
            }
        )
        full = next((row for row in rows if row["method"] == "full"), None)
        if full is not None:
            for row in rows:
                row["total_of_full"] = row["total_bytes"] / full["total_bytes"]
        if config.json:  # after every row: a method that does not fit must not lose the others
            known = {key: getattr(config, key) for key in ("text_base", "batch_size", "source_tokens", "target_tokens")}
            write_json(config.json, {**known, "estimated": config.estimate, "device": str(bench.device), "rows": rows})
    show(config, rows)


def methods(adapter: Any, base: str) -> list[Any]:
    """The options of each row."""
    if adapter.kind != "all":
        return [adapter]
    lora, lst = LoraOptions(rank=32), LstOptions(reduction=8, keep=KEPT.get(base))
    return [FullOptions(), lora, BitfitOptions(), lst, SherlOptions(reduction=8)]


def show(config: Config, rows: list[dict[str, Any]]) -> None:
    """Print the rows and the meaning of the columns."""
    how = "predicted" if config.estimate else "measured, random weights"
    title = f"{config.text_base}, {config.batch_size} texts of {config.source_tokens} tokens, {config.precision}, {how}"
    grid = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    grid.add_column("method", no_wrap=True)
    names = ["trained", "saved\nMiB", "peak\nMiB", "all\nMiB"]
    names += ["all of\nfull"] if "total_of_full" in rows[0] else []
    for name in names:
        grid.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row['trainable_parameters'] / 1e6:.2f} M"]
        cells += [f"{row[key] / MIB:,.0f}" for key in ("saved_activation_bytes", "peak_bytes", "total_bytes")]
        cells += [f"{row['total_of_full']:.1%}"] if "total_of_full" in row else []
        grid.add_row(row["method"], *cells)
    console = Console()
    console.print(grid)
    console.print(
        "saved: activations saved for backward. peak: largest sum beyond parameters and optimizer state, with "
        "gradients. all: peak, parameters and optimizer state.",
        highlight=False,
    )


if __name__ == "__main__":
    run(main, Config)
