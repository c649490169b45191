"""Search an indexed folder of videos by text, by image or by another video.

python tasks/video_retrieval/search.py --index IDX --text "a dog catches a ball" --k 5
python tasks/video_retrieval/search.py --index IDX --video query.mp4 --json hits.json
python tasks/video_retrieval/search.py --index IDX --text "a dog catches a ball" --refine runs/moment_retrieval/…
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlkit.cli.config import about, run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.index import VectorIndex
from vlkit.index.media import Window
from vlkit.index.source import IndexSource
from vlkit.tasks.load import load
from vlkit.tasks.video_retrieval.pipeline import VideoRetrievalPipeline, load_zero_shot

QUERIES = ("text", "image", "video")


@dataclass
class Config:
    """Search an indexed folder of videos by text, by image or by another video."""

    index: Path
    """Index folder written by index.py."""
    text: str | None = None
    """Search by this text."""
    image: Path | None = None
    """Search by this image file."""
    video: Path | None = None
    """Search by this video file."""
    k: int = 5
    """Number of results."""
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
        if sum(getattr(self, name) is not None for name in QUERIES) != 1:
            raise UserError('give one of --text "…", --image FILE and --video FILE')
        if self.text is not None and not self.text.strip():
            raise UserError("--text: is empty; say what to look for")
        if self.refine is not None and self.text is None:
            raise UserError("--refine: finds what a text describes; give --text")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    with about("--index"):
        source = IndexSource.read(config.index, "videos")
    pipeline = open_pipeline(config, source)
    index = VectorIndex.open(config.index, pipeline.identity)
    kind = next(name for name in QUERIES if getattr(config, name) is not None)
    asked = getattr(config, kind)
    with about(f"--{kind}"):
        query = embed(pipeline, kind, asked)
    found = [
        {
            "video": str(source.folder / where.video),
            "start": where.start,
            "end": where.end,
            "score": round(hit.score, 6),
        }
        for hit in index.search(query, config.k)[0]
        for where in [Window.of(hit.item)]
    ]
    if config.refine:
        found = refined(found, config)
    if config.json:
        write_json(config.json, {"query": {kind: str(asked)}, "model": pipeline.identity, "results": found})
    table = Table("score", "start", "end", "video", title=f"{asked} ({len(index)} windows)")
    for hit in found:
        table.add_row(f"{hit['score']:.3f}", f"{hit['start']:.1f} s", f"{hit['end']:.1f} s", hit["video"])
    Console().print(table)


def refined(found: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Replace each hit by the best moment of its video that overlaps it; a hit without one is kept.

    Every video is read once. The score stays that of the search; ``moment_score`` is that of the moment. Hits that lead
    to the same moment become one.
    """
    with about("--refine"):
        finder = load(config.refine, config.device, task="moment_retrieval")
        moments = {video: finder.moments(video, config.text, 50) for video in dict.fromkeys(h["video"] for h in found)}
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


def embed(pipeline: VideoRetrievalPipeline, kind: str, asked: Any) -> np.ndarray:
    """The query's vector, [1, E]."""
    if kind == "text":
        return pipeline.embed_texts([asked])
    return pipeline.embed_videos([asked]) if kind == "video" else pipeline.embed_images([asked])


if __name__ == "__main__":
    run(main, Config)
