"""Search an indexed folder of videos by text, by image or by another video.

python tasks/video_retrieval/search.py --index IDX --text "a dog catches a ball" --k 5
python tasks/video_retrieval/search.py --index IDX --video query.mp4 --json hits.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from vlkit.cli.config import run
from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.files import read_json, write_json
from vlkit.index import VectorIndex
from vlkit.tasks.load import load
from vlkit.tasks.video_retrieval.pipeline import VideoRetrievalPipeline, load_zero_shot

QUERIES = ("text", "image", "video")


@dataclass
class Config:
    """Search an indexed folder of videos by text, by image or by another video."""

    index: Path
    """Index folder made by index.py."""
    text: str | None = None
    """What to look for, in words."""
    image: Path | None = None
    """What to look for, as an image."""
    video: Path | None = None
    """What to look for, as a video."""
    k: int = 5
    """Number of results."""
    model: Path | None = None
    """Adapter folder, if it has moved since the index was made."""
    json: Path | None = None
    """Write the results there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in QUERIES) != 1:
            raise UserError('give one of --text "…", --image FILE and --video FILE')
        if self.text is not None and not self.text.strip():
            raise UserError("--text: is empty; say what to look for")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    if not (config.index / "source.json").exists():
        raise UserError(f"--index {config.index}: no index there; make one with tasks/video_retrieval/index.py")
    source = read_json(config.index / "source.json")
    if "videos" not in source:
        raise UserError(f"--index {config.index}: an index of images; search it with tasks/retrieval/search.py")
    model = config.model or (Path(source["model"]) if source["model"] else None)
    pipeline = (
        load(model, config.device, task="video_retrieval") if model else load_zero_shot(source["base"], config.device)
    )
    index = VectorIndex.open(config.index, pipeline.identity)
    kind = next(name for name in QUERIES if getattr(config, name) is not None)
    asked = getattr(config, kind)
    try:
        query = embed(pipeline, kind, asked)
    except MediaError as error:
        raise UserError(f"--{kind} {error}") from None
    found = [
        {
            "video": str(Path(source["videos"]) / hit.item.metadata["video"]),
            "start": hit.item.metadata["start"],
            "end": hit.item.metadata["end"],
            "score": round(hit.score, 6),
        }
        for hit in index.search(query, config.k)[0]
    ]
    if config.json:
        write_json(config.json, {"query": {kind: str(asked)}, "model": pipeline.identity, "results": found})
    table = Table("score", "start", "end", title=f"{asked} ({len(index)} windows)")
    table.add_column("video", overflow="fold")
    for hit in found:
        table.add_row(f"{hit['score']:.3f}", f"{hit['start']:.1f} s", f"{hit['end']:.1f} s", hit["video"])
    Console().print(table, soft_wrap=True)


def embed(pipeline: VideoRetrievalPipeline, kind: str, asked: Any) -> np.ndarray:
    """The query's vector, [1, E]."""
    if kind == "text":
        return pipeline.embed_texts([asked])
    return pipeline.embed_videos([asked]) if kind == "video" else pipeline.embed_images([asked])


if __name__ == "__main__":
    run(main, Config)
