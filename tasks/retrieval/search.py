"""Search an indexed folder by text or by image.

python tasks/retrieval/search.py --index IDX --text "a plane on a lake" --k 5
python tasks/retrieval/search.py --index IDX --image query.jpg --json hits.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import about, run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.index.disk import open_index
from vlkit.index.source import IndexSource
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot


@dataclass
class Config:
    """Search an indexed folder by text or by image."""

    index: Path
    """Index folder written by index.py."""
    text: str | None = None
    """Search by this text."""
    image: Path | None = None
    """Search by this image file."""
    k: int = 5
    """Number of results."""
    model: Path | None = None
    """Adapter folder, if it has moved since the index was made."""
    json: Path | None = None
    """Write the results to this file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UserError('give either --text "…" or --image FILE')
        if self.text is not None and not self.text.strip():
            raise UserError("--text: is empty; say what to look for")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    with about("--index"):
        source = IndexSource.read(config.index, "images")
    pipeline = open_pipeline(config, source)
    index = open_index(config.index, pipeline.identity)
    with about("--text" if config.text else "--image"):
        query = pipeline.embed_texts([config.text]) if config.text else pipeline.embed_images([config.image])
    hits = index.search(query, config.k)[0]
    found = [{"image": str(source.folder / hit.item.id), "score": round(hit.score, 6)} for hit in hits]
    if config.json:
        asked = {"text": config.text} if config.text else {"image": str(config.image)}
        write_json(config.json, {"query": asked, "model": pipeline.identity, "results": found})
    table = Table("score", "image", title=f"{config.text or config.image} ({len(index)} images)")
    for hit in found:
        table.add_row(f"{hit['score']:.3f}", hit["image"])
    Console().print(table)


def open_pipeline(config: Config, source: IndexSource) -> RetrievalPipeline:
    """The model that made the index."""
    if config.model is None and source.model is None:
        return load_zero_shot(source.base, config.device)
    try:
        return load(config.model or source.model, config.device, task="retrieval")
    except UserError as error:
        hint = "" if config.model else "; if the adapter has moved since the index was made, give --model DIR"
        raise UserError(f"{error}{hint}") from None


if __name__ == "__main__":
    run(main, Config)
