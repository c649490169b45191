"""A control for captioning without training: the consensus caption of the nearest training images.

    python tasks/captioning/nearest.py --data.root data/coco --base ViT-B-32:openai --output runs/coco-nearest
    python tasks/compare.py --task captioning --kinds nearest,sherl --output runs/compare

Reports the better of the nearest image and the ten nearest, by CIDEr on the split that is reported.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.encoders.load import load_base
from vlkit.engine.distributed import make_fabric
from vlkit.engine.report import Report, print_report
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.captioning.baseline import nearest_metrics
from vlkit.tasks.captioning.data import CaptionData
from vlkit.tasks.captioning.task import TASK
from vlkit.tasks.splits import reported_split


@dataclass
class Data(CaptionData):
    """Dataset to copy captions from and to measure on."""

    train: str = "train"
    """Split whose captions are copied."""
    validation: str = "val"
    """Split to report on if there is no test split."""
    per_image: int = 0
    """Accepted for tasks/compare.py, without effect: all captions of an image are used."""
    augment: Literal["none", "crop"] = "none"
    """Accepted for tasks/compare.py, without effect."""


@dataclass
class Config:
    """Measure captions copied from the nearest training images."""

    output: Path = Path("runs/captioning-nearest")
    """Folder for metrics.json."""
    base: str = "tiny"
    """Base whose image embeddings are compared: tiny (embedded), ARCH:TAG or ARCH:FILE of open_clip, or photos."""
    image_size: int | None = None
    """Side of the input in pixels; default: that of the base."""
    data: Data = field(default_factory=Data)
    seed: int = 0
    """Written to the report; the control is deterministic."""
    resume: bool = False
    """Accepted for tasks/compare.py: an interrupted run starts anew."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    if (config.output / "metrics.json").exists() and not config.resume:
        raise UserError(f"--output {config.output}: already holds a run; choose another folder")
    dataset = TASK.dataset(config.data.root, config.data.columns, size=config.data.size, style=config.data.style)
    test = reported_split(dataset, config.data)
    base = load_base(config.base, image_size=config.image_size)
    device = make_fabric(config.device).device
    base.image.to(device)
    began = time.monotonic()
    name, metrics = nearest_metrics(base, dataset, config.data.train, test, device)
    seconds = time.monotonic() - began
    size = sum(parameter.numel() for parameter in base.image.parameters())
    count = len(dataset.records(config.data.train))
    report = Report(
        task=TASK.name,
        base=base.identity,
        adapter={"kind": "nearest", "captions_of": name},
        split=test,
        before=metrics,  # training runs report this control as their first row
        after=metrics,
        trainable_parameters=0,
        total_parameters=size,
        saved_activation_bytes=0,
        peak_memory_bytes=0,
        train_seconds=seconds,
        examples_per_second=count / max(seconds, 1e-9),
        seed=config.seed,
        more={"before_is": f"consensus caption of the {name}"},
    )
    write_json(config.output / "metrics.json", report.as_json())
    print_report(report, config.output, TASK.scores, name)


if __name__ == "__main__":
    run(main, Config)
