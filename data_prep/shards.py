"""WebDataset tars with images and captions -> a prepared dataset for retrieval; the images stay in the tars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Progress
from vlkit.data.sources.named_splits import SplitShares
from vlkit.data.sources.prepare import prepare
from vlkit.data.sources.shards import read


@dataclass
class Config(SplitShares):
    """Prepare WebDataset tars with images and captions; the images stay there."""

    tars: str
    """Uncompressed tars: names with ranges or wildcards ("shards/{000..099}.tar", "shards/*/*.tar"), or a folder."""
    output: Path
    """Folder to write the prepared dataset to."""
    columns: str = ""
    """Fields of the .json beside an image: texts=FIELD (may be repeated), split=FIELD. Default: the captions in .txt,
    one per line, else the usual fields of .json."""
    partial: bool = False
    """Skip damaged tars from the damage on, and captions that cannot be read; list them in wrong.txt."""


def main(config: Config) -> None:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("read tars")
        source, media = read(
            config.tars,
            config.columns,
            val=config.val,
            test=config.test,
            seed=config.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(prepare(source, config.output, media, partial=config.partial).summary())


if __name__ == "__main__":
    run(main, Config)
