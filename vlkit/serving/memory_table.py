"""The predictions that come with the package, so that the demo's Memory tab answers at once.

python -m vlkit.serving.memory_table                 # adds the rows that are missing
python -m vlkit.serving.memory_table --again true    # every row anew, after a change of a method or of torch
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_args

from vlkit.adapters import ADAPTERS
from vlkit.cli.config import run
from vlkit.cli.show import Console, track
from vlkit.encoders.stored_weights import WeightFormat, with_format
from vlkit.engine.report import versions
from vlkit.files import read_json, write_json
from vlkit.memory.step import StepMemory

TABLE = Path(str(files("vlkit"))) / "assets" / "memory.json"
METHODS = {"SHERL": ADAPTERS["sherl"], "LoRA": ADAPTERS["lora"], "full": ADAPTERS["full"]}
"""Methods compared, with their default options."""
KNOWN = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14")
"""Bases in the table. Their memory is linear in the batch size from the first of :data:`POINTS` on: such batches are
large enough that methods split them into chunks and that activations, not the optimizer, determine the peak.
"""
POINTS = 16, 32
"""Pairs per step that are predicted."""
FORMATS = cast(tuple[WeightFormat, ...], get_args(WeightFormat))

Key = tuple[str, str, int]


@dataclass
class Config:
    """Predict the memory of a training step for the table of the demo's Memory tab."""

    json: Path = TABLE
    """File to write; it grows by each row, so an interrupted run goes on where it stopped."""
    again: bool = False
    """Predict the rows that are already there, too."""


def main(config: Config) -> None:
    # Imported here: the table is read by servers that predict nothing.
    from vlkit.serving.memory import predict

    rows: dict[Key, dict[str, Any]] = {}
    if config.json.exists() and not config.again:
        rows = {_key(row): row for row in read_json(config.json)["rows"]}
    missing = [key for key in wanted() if key not in rows]
    for base, method, size in track(missing, "predictions", console=Console(stderr=True), transient=True):
        key = {"base": base, "method": method, "batch_size": size}
        rows[base, method, size] = {**key, **asdict(predict(base, method, size))}
        ordered = [rows[known] for known in wanted() if known in rows]
        how = {"command": "python -m vlkit.serving.memory_table", "precision": "32-true", "versions": versions()}
        write_json(config.json, {**how, "rows": ordered})
    Console().print(f"{len(rows)} rows in {config.json}")


def wanted() -> list[Key]:
    """(base with its weight format, method, pairs per step) of every row.

    A stored format changes only what does not depend on the batch size, so one size is enough there.
    """
    return [
        (with_format(base, weights), method, size)
        for base in KNOWN
        for weights in FORMATS
        for method in methods_for(weights)
        for size in (POINTS if weights == "fp32" else POINTS[:1])
    ]


def methods_for(weights: WeightFormat) -> list[str]:
    """The methods that can be used with a weight format: full fine-tuning refuses all but fp32."""
    return [name for name in METHODS if weights == "fp32" or name != "full"]


@functools.lru_cache(maxsize=1)
def shipped() -> dict[Key, StepMemory]:
    """The table: (base with its weight format, method, pairs per step) -> memory."""
    fields = StepMemory.__dataclass_fields__
    rows = read_json(TABLE)["rows"]
    return {_key(row): StepMemory(**{name: row[name] for name in fields}) for row in rows}


def _key(row: dict[str, Any]) -> Key:
    return row["base"], row["method"], row["batch_size"]


if __name__ == "__main__":
    run(main, Config)
