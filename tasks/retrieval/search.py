"""Search an indexed folder by text or by picture.

python tasks/retrieval/search.py --index IDX --text "a plane on a lake" --k 5
python tasks/retrieval/search.py --index IDX --image query.jpg --json hits.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from vlkit.cli.config import run
from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.files import read_json, write_json
from vlkit.index import VectorIndex
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import load_zero_shot
from vlkit.tasks.retrieval.task import TASK


@dataclass
class Config:
    """Search an indexed folder by text or by picture."""

    index: Path
    """Index folder made by index.py."""
    text: str | None = None
    """What to look for, in words."""
    image: Path | None = None
    """What to look for, as a picture."""
    k: int = 5
    """Number of results."""
    model: Path | None = None
    """Adapter folder, if it has moved since the index was made."""
    json: Path | None = None
    """Write the results there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UserError('give either --text "…" or --image FILE')
        if self.text is not None and not self.text.strip():
            raise UserError("--text: is empty; say what to look for")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    if not (config.index / "source.json").exists():
        raise UserError(f"--index {config.index}: no index there; make one with tasks/retrieval/index.py")
    source = read_json(config.index / "source.json")
    model = config.model or (Path(source["model"]) if source["model"] else None)
    pipeline = load(model, config.device, task=TASK.name) if model else load_zero_shot(source["base"], config.device)
    index = VectorIndex.open(config.index, pipeline.identity)
    try:
        query = pipeline.embed_texts([config.text]) if config.text else pipeline.embed_images([config.image])
    except MediaError as error:
        raise UserError(f"--image {error}") from None
    hits = index.search(query, config.k)[0]
    found = [{"image": str(Path(source["images"]) / hit.item.id), "score": round(hit.score, 6)} for hit in hits]
    if config.json:
        asked = {"text": config.text} if config.text else {"image": str(config.image)}
        write_json(config.json, {"query": asked, "model": pipeline.identity, "results": found})
    table = Table("score", "picture", title=f"{config.text or config.image} ({len(index)} pictures)")
    for hit in found:
        table.add_row(f"{hit['score']:.3f}", hit["image"])
    Console().print(table, soft_wrap=True)


if __name__ == "__main__":
    run(main, Config)
