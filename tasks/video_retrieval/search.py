"""Search an indexed folder of videos by texts, images, other videos, or sums of them.

python tasks/video_retrieval/search.py --index IDX --text "a dog catches a ball" --k 5
python tasks/video_retrieval/search.py --index IDX --text "dog + snow - car"
python tasks/video_retrieval/search.py --index IDX --video query.mp4 --json hits.json
python tasks/video_retrieval/search.py --index IDX --text "a dog catches a ball" --refine runs/moment_retrieval/…
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vlkit.cli.config import about, repeated, run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.index import VectorIndex
from vlkit.index.media import Window
from vlkit.index.query import Term, asked_for, file_term, query_vector, text_terms
from vlkit.index.source import IndexSource
from vlkit.tasks.load import load
from vlkit.tasks.video_retrieval.pipeline import VideoRetrievalPipeline, load_zero_shot

QUERIES = ("text", "image", "video")


@dataclass
class Config:
    """Search an indexed folder of videos by texts, images, other videos, or sums of them."""

    index: Path
    """Index folder written by index.py."""
    text: list[str] = repeated()
    """Search by this text. " + " and " - " add and subtract terms, 2*dog weights one: "dog + snow - 0.5*car"; double
    quotes protect signs. May be repeated, and combined with --image and --video; the terms are summed."""
    image: list[str] = repeated()
    """Search by this image file; with a sign or weight: -FILE, 0.5*FILE. May be repeated."""
    video: list[str] = repeated()
    """Search by this video file, as --image."""
    k: int = 5
    """Number of results."""
    min_score: float | None = None
    """Drop results with a smaller cosine."""
    model: Path | None = None
    """Adapter folder, if it has moved since the index was made."""
    refine: Path | None = None
    """Adapter folder of task moment_retrieval: it replaces the windows found by the moments in their videos (--text
    only)."""
    json: Path | None = None
    """Write the results to this file."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in QUERIES):
            raise UserError('give one of --text "…", --image FILE and --video FILE')
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    terms = query_terms(config)
    with about("--index"):
        source = IndexSource.read(config.index, "videos")
    pipeline = open_pipeline(config, source)
    index = VectorIndex.open(config.index, pipeline.identity)
    asked = {name: getattr(config, name) for name in QUERIES}
    with about(f"--{next(name for name in reversed(QUERIES) if asked[name])}"):
        query = query_vector(terms, pipeline)
    found = [
        {
            "video": str(source.folder / where.video),
            "start": where.start,
            "end": where.end,
            "score": round(hit.score, 6),
        }
        for hit in index.search(query, config.k, config.min_score)[0]
        for where in [Window.of(hit.item)]
    ]
    if config.refine:
        found = refined(found, config.refine, terms[0].value, config.device)
    if config.json:
        about_query = {"query": asked_for(**asked), "terms": [term.as_json() for term in terms]}
        write_json(config.json, {**about_query, "model": pipeline.identity, "results": found})
    shown = ", ".join(word for words in asked.values() for word in words)
    table = Table("score", "start", "end", "video", title=f"{shown} ({len(index)} windows)")
    for hit in found:
        table.add_row(f"{hit['score']:.3f}", f"{hit['start']:.1f} s", f"{hit['end']:.1f} s", hit["video"])
    Console().print(table)


def query_terms(config: Config) -> list[Term]:
    """The terms of the query, in the order of texts, images and videos."""
    with about("--text:"):
        terms = [term for text in config.text for term in text_terms(text)]
    for kind in ("image", "video"):
        terms += [file_term(word, cast(Any, kind)) for word in getattr(config, kind)]
    if config.refine is not None and (len(terms) > 1 or not config.text or terms[0].weight <= 0):
        raise UserError("--refine: finds what one text describes; give --text with one term")
    return terms


def refined(found: list[dict[str, Any]], folder: Path, text: str, device: str) -> list[dict[str, Any]]:
    """Replace each hit by the best moment of its video that overlaps it; a hit without one is kept.

    Every video is read once. The score stays that of the search; ``moment_score`` is that of the moment. Hits that lead
    to the same moment become one.
    """
    with about("--refine"):
        finder = load(folder, device, task="moment_retrieval")
        moments = {video: finder.moments(video, text, 50) for video in dict.fromkeys(h["video"] for h in found)}
    results: dict[tuple[str, float, float], dict[str, Any]] = {}
    for hit in found:
        overlapping = [m for m in moments[hit["video"]] if m[0] < hit["end"] and m[1] > hit["start"]]
        if overlapping:
            start, end, score = overlapping[0]
            hit = {
                **hit,
                "start": start,
                "end": end,
                "moment_score": round(score, 6),
                "window": [hit["start"], hit["end"]],
            }
        results.setdefault((hit["video"], hit["start"], hit["end"]), hit)
    return list(results.values())


def open_pipeline(config: Config, source: IndexSource) -> VideoRetrievalPipeline:
    """The model that made the index."""
    if config.model is None and source.model is None:
        return load_zero_shot(source.base, config.device)
    try:
        return load(config.model or source.model, config.device, task="video_retrieval")
    except UserError as error:
        hint = "" if config.model else "; if the adapter has moved since the index was made, give --model DIR"
        raise UserError(f"{error}{hint}") from None


if __name__ == "__main__":
    run(main, Config)
