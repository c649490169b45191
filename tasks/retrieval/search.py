"""Search an indexed folder by texts, images, or sums of both.

python tasks/retrieval/search.py --index IDX --text "a plane on a lake" --k 5
python tasks/retrieval/search.py --index IDX --text "dog + snow - 0.5*car" --min_score auto
python tasks/retrieval/search.py --index IDX --image query.jpg --text "at night" --json hits.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.config import about, repeated, run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.index import Hit
from vlkit.index.disk import open_index
from vlkit.index.query import Term, asked_for, file_term, query_vector, text_terms
from vlkit.index.source import IndexSource
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot


@dataclass
class Config:
    """Search an indexed folder by texts, images, or sums of both."""

    index: Path
    """Index folder written by index.py."""
    text: list[str] = repeated()
    """Search by this text. " + " and " - " add and subtract terms, 2*dog weights one: "dog + snow - 0.5*car"; double
    quotes protect signs. May be repeated, and combined with --image; the terms are summed."""
    image: list[str] = repeated()
    """Search by this image file; with a sign or weight: -FILE, 0.5*FILE. May be repeated."""
    k: int = 5
    """Number of results."""
    min_score: float | Literal["auto"] | None = None
    """Drop results with a smaller cosine; auto: the threshold calibrated in the adapter's training, or by index.py
    --calibrate (for texts)."""
    model: Path | None = None
    """Adapter folder, if it has moved since the index was made."""
    json: Path | None = None
    """Write the results to this file."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if not self.text and not self.image:
            raise UserError('give --text "…" or --image FILE')
        if self.min_score == "auto" and self.image:
            raise UserError("--min_score auto: is calibrated for texts; give a number for queries with an image")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    terms = query_terms(config)
    with about("--index"):
        source = IndexSource.read(config.index, "images")
    pipeline = open_pipeline(config, source)
    index = open_index(config.index, pipeline.identity)
    least = smallest_score(config, source, pipeline)
    with about("--image" if config.image else "--text"):
        query = query_vector(terms, pipeline)
    found = [result(source, hit) for hit in index.search(query, config.k, least)[0]]
    if config.json:
        asked = {"query": asked_for(text=config.text, image=config.image), "terms": [t.as_json() for t in terms]}
        write_json(config.json, {**asked, "model": pipeline.identity, "min_score": least, "results": found})
    captioned = ["caption"] if any("caption" in hit for hit in found) else []
    title = f"{', '.join([*config.text, *config.image])} ({len(index)} images)"
    table = Table("score", "image", *captioned, title=title)
    for hit in found:
        table.add_row(f"{hit['score']:.3f}", hit["image"], *(hit.get(name, "") for name in captioned))
    Console().print(table)
    if least is not None and len(found) < min(config.k, len(index)):
        Console().print(f"{len(found)} of {config.k}: other images have a score below {least:.4f}")


def result(source: IndexSource, hit: Hit) -> dict[str, Any]:
    """A hit as it is written: path, score, and the caption if index.py has stored one."""
    caption = hit.item.metadata.get("caption")
    more = {"caption": caption} if isinstance(caption, str) else {}
    return {"image": str(source.folder / hit.item.id), "score": round(hit.score, 6), **more}


def query_terms(config: Config) -> list[Term]:
    """The terms of the query, in the order of texts and images."""
    with about("--text:"):
        terms = [term for text in config.text for term in text_terms(text)]
    return terms + [file_term(image, "image") for image in config.image]


def smallest_score(config: Config, source: IndexSource, pipeline: RetrievalPipeline) -> float | None:
    """The threshold that ``--min_score`` asks for."""
    if config.min_score != "auto":
        return config.min_score
    least = pipeline.min_score if source.min_score is None else source.min_score
    if least is None:
        raise UserError(
            f"--min_score auto: neither {config.index} nor its model has a calibrated threshold; give a number, or run "
            "index.py with --calibrate DATASET"
        )
    return least


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
