"""Copy an index of images into a vector database, for more vectors or more writers than files suit.

    vlkit index export --index IDX --to lancedb --store vectors.lance
    vlkit index export --index IDX --to qdrant --store http://localhost:6333

The same command again brings the copy up to date; an interrupted one is completed by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Progress
from vlkit.errors import UserError
from vlkit.index.disk import open_index
from vlkit.index.stores import agreement, export_index, open_store


@dataclass
class Config:
    """Copy an index of images into a vector database."""

    index: Path
    """Index folder (index.py), of a folder or on disk."""
    to: Literal["lancedb", "qdrant"]
    """Database, reached by its own client (pip install 'vlkit[stores]')."""
    store: str
    """Folder for the database; or the address of a server (db://…, http://…), whose key is read from LANCEDB_API_KEY or
    QDRANT_API_KEY."""
    collection: str = ""
    """Name of the table; default: that of the index folder."""


def main(config: Config) -> None:
    index = open_index(config.index)
    if not len(index):
        raise UserError(f"--index {config.index}: holds no vectors; make them with index.py")
    name = config.collection or config.index.resolve().name
    store = open_store(config.to, config.store, name, index.dim)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copy vectors")
        count = export_index(index, store, lambda done, total: bar.update(task, completed=done, total=total))
    same = agreement(index, store)
    Console().print(
        f"{config.store}: {count} vectors in {name}; {same:.0%} of the 10 nearest of some of them are the same"
    )


if __name__ == "__main__":
    run(main, Config)
