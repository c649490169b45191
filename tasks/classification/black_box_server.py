"""Serve a classifier as a black box over HTTP: image files in, class scores out.

    python tasks/classification/black_box_server.py --port 8000                       # embedded base, demo classes
    python tasks/classification/black_box_server.py --model runs/classification/… --port 8000

The protocol is that of vlkit/serving/black_box.py. It is meant for tests and for a trusted network: anyone who reaches
the port may ask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image
from torch import Tensor

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.serving.score_server import ScoreServer
from vlkit.tasks.classification.dataset import Demo, classification_dataset
from vlkit.tasks.classification.pipeline import ClassificationPipeline, zero_shot_pipeline
from vlkit.tasks.classification.prompts import PromptOptions, prompts_of
from vlkit.tasks.classification.task import TASK
from vlkit.tasks.load import load


@dataclass
class Data:
    """Dataset whose classes the base scores."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""
    demo: Demo = "kinds"
    """Demo dataset: kinds (drawn things in a style new to the base), or dark (the same images at half the exposure)."""


@dataclass
class Config:
    """Serve a classifier as a black box over HTTP."""

    model: Path | None = None
    """A saved classifier; default: a base with class prompts."""
    base: str = "tiny"
    """That base."""
    data: Data = field(default_factory=Data)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1 = this machine alone."""
    port: int = 8000
    """Port; 0 = any free one."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    pipeline = open_pipeline(config)
    with make_server(pipeline, config.host, config.port) as server:
        Console().print(
            f"{pipeline.name}: {len(pipeline.classes)} classes at http://{config.host}:{server.server_port}",
            highlight=False,
        )
        server.serve_forever()


def open_pipeline(config: Config) -> ClassificationPipeline:
    """The saved classifier, or the base with the prompts of the dataset's classes."""
    if config.model is not None:
        return load(config.model, config.device, task=TASK.name)
    dataset = classification_dataset(config.data.root, config.data.demo)
    return zero_shot_pipeline(config.base, prompts_of(dataset, config.prompts), config.device)


def make_server(pipeline: ClassificationPipeline, host: str, port: int) -> ScoreServer:
    """A server for a classifier."""

    def score(images: list[Image.Image]) -> Tensor:
        return pipeline.labeller.scores(images, lambda image: image)

    height, width = pipeline.labeller.base.preprocess.size
    return ScoreServer(score, pipeline.classes, (height, width), host, port)


if __name__ == "__main__":
    run(main, Config)
