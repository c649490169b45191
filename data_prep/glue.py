"""One task of GLUE from the official TSV files -> a prepared dataset of texts, split as in the LST and SHERL studies.

python data_prep/glue.py --folder GLUE --task rte --output data/rte
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.data.sources import glue
from vlkit.data.sources.prepare import prepare
from vlkit.files import write_text

INDICES = "indices.json"


@dataclass
class Config:
    """Prepare one task of GLUE."""

    folder: Path
    """The task's folder (train.tsv, dev.tsv, test.tsv), or the folder with the folders of all tasks."""
    task: Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    """The task."""
    output: Path
    """Folder to write the prepared dataset to. Its indices.json says where each row comes from."""
    indices: Path | None = None
    """indices.json of an earlier run: the same splits, whatever the version of torch."""
    partial: bool = False
    """Leave out wrong lines, and list them in wrong.txt, instead of stopping."""


def main(config: Config) -> None:
    source = glue.read(config.folder, config.task, config.indices)
    indices: list[str] = []
    glue.write_indices(source, indices.append)
    config.output.mkdir(parents=True, exist_ok=True)
    prepared = prepare(source, config.output, config.output, partial=config.partial)
    write_text(config.output / INDICES, indices[0])
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
