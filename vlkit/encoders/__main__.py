"""``python -m vlkit.encoders [--json FILE]``: which bases can be staged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table, track
from vlkit.files import write_json


@dataclass
class Config:
    """List every architecture and, per tower, "staged" or the reason why it cannot be staged; downloads nothing."""

    json: Path | None = None
    """Also write the list to this JSON file: objects with name, library, vision, text."""


def main(config: Config) -> None:
    """Print the list as a table, and how many open_clip architectures are staged on both sides."""
    from vlkit.encoders.catalog import STAGED, catalog

    errors = Console(stderr=True)
    rows = list(track(catalog(), "reading architectures", console=errors, transient=True))
    if config.json:
        write_json(config.json, rows)
    table = Table("name", "library", "vision", "text")
    for row in rows:
        table.add_row(row["name"], row["library"], row["vision"], row["text"])
    console = Console()
    console.print(table)
    pairs = [row for row in rows if row["library"] == "open_clip"]
    both = sum(row["vision"] == row["text"] == STAGED for row in pairs)
    console.print(f"{both} of {len(pairs)} open_clip architectures are staged on both sides")
    console.print("rows hf:NAME are examples: any CLIP, SigLIP or SigLIP 2, by hub name or folder")


if __name__ == "__main__":
    run(main, Config)
