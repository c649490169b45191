"""Classify images: files, a folder, or a split of a prepared dataset; writes JSON or CSV.

    python tasks/classification/predict.py --model runs/classification/… --images cat.jpg dog.jpg
    python tasks/classification/predict.py --model runs/classification/… --images FOLDER --output classes.csv
    python tasks/classification/predict.py --model runs/classification/… --images FOLDER --classes cat dog "a red car"
    python tasks/classification/predict.py --model runs/classification/… --data.root DIR --split test --output out.json

Files that are no readable image are named and left out.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, track, visible
from vlkit.data.images import MediaError, open_image
from vlkit.data.scan import find_media
from vlkit.errors import UserError, some
from vlkit.files import write_json, write_text
from vlkit.tasks.classification.dataset import Demo, classification_dataset
from vlkit.tasks.classification.pipeline import ClassificationPipeline
from vlkit.tasks.classification.task import TASK
from vlkit.tasks.load import load

SHOWN, BATCH = 5, 32


@dataclass
class Data:
    """Dataset for --split."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""
    demo: Demo = "kinds"
    """Demo dataset: kinds (drawn things in a style new to the base), or dark (the same images at half the exposure)."""


@dataclass
class Config:
    """Classify images, or every image of a split."""

    model: Path
    """Run or adapter folder."""
    images: list[Path] = field(default_factory=list)
    """Image files, or folders that are searched for images."""
    split: str | None = None
    """Classify a split of a dataset instead."""
    data: Data = field(default_factory=Data)
    classes: list[str] = field(default_factory=list)
    """Other class names, compared by their prompts; default: the adapter's own classes."""
    k: int = 0
    """Most classes per image in the output; 0 = all."""
    output: Path | None = None
    """File to write: .json ([{"image", "class", "probability", "scores": {class: probability}}]) or .csv (a column per
    class)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if bool(self.images) == (self.split is not None):
            raise UserError("give either --images FILE_OR_FOLDER … or --split NAME")
        if self.k < 0:
            raise UserError(f"--k {self.k}: must be at least 0; 0 = all classes")
        if self.output is not None and self.output.suffix.lower() not in (".json", ".csv"):
            raise UserError(f"--output {self.output}: must end with .json or .csv")


def main(config: Config) -> None:
    sources = list(sources_of(config))
    pipeline = load(config.model, config.device, task=TASK.name)
    rows, bad = [], []
    console = Console(stderr=True)
    starts = range(0, len(sources), BATCH)
    for start in track(starts, "classify", console=console, transient=True):
        rows += classified(pipeline, sources[start : start + BATCH], config, bad)
    if not rows:
        raise UserError(f"none of {len(sources)} images can be read: {bad[0]}")
    if config.output is None or len(rows) <= SHOWN:
        show(rows)
    if config.output is not None:
        write(config.output, rows, config.classes or pipeline.classes)
        Console().print(f"{len(rows)} images: {config.output}", highlight=False)
    for reason in bad:
        console.print(f"left out: {reason}", highlight=False)


def sources_of(config: Config) -> Iterator[tuple[str, Path, str | None]]:
    """(name, file, right class or None) of every image."""
    if config.split is not None:
        dataset = classification_dataset(config.data.root, config.data.demo)
        for record in dataset.records(config.split):
            yield record["image"], dataset.path(record), record["label"]
        return
    for path in config.images:
        if path.is_dir():
            found = find_media(path, "images", "--images")
            if found.note():
                print(f"note: {path}: {found.note()}", file=sys.stderr)
            yield from ((str(file), file, None) for file in found.paths)
        elif path.exists():
            yield str(path), path, None
        else:
            raise UserError(f"--images {path}: no such file or folder")


def classified(
    pipeline: ClassificationPipeline, sources: list[tuple[str, Path, str | None]], config: Config, bad: list[str]
) -> list[dict[str, Any]]:
    """A row for each image that can be read; the others are added to ``bad``."""
    opened = []
    for name, path, label in sources:
        try:
            opened.append((name, open_image(path), label))
        except MediaError as error:
            bad.append(str(error))
    found = pipeline.classify_many([image for _, image, _ in opened], config.classes or None, config.k or None)
    rows = []
    for (name, _, label), scores in zip(opened, found, strict=True):
        best = {"image": visible(name), "class": scores[0][0], "probability": scores[0][1]}
        rows.append({**best, **({} if label is None else {"label": label}), "scores": dict(scores)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the most probable classes of each image."""
    console = Console()
    for row in rows:
        best = [f"{name} {probability:.3f}" for name, probability in row["scores"].items()]
        console.print(f"{row['image']}: {some(best[:SHOWN], SHOWN)}", highlight=False, soft_wrap=True)


def write(path: Path, rows: list[dict[str, Any]], classes: list[str]) -> None:
    """Write the rows as JSON, or as CSV with a column for each class (blank where ``--k`` left it out)."""
    if path.suffix.lower() == ".json":
        write_json(path, rows)
        return
    classes = [name.strip() for name in classes]
    first = ["image", "class", "probability", *(["label"] if "label" in rows[0] else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*first, *(f"p({name})" for name in classes)])
    writer.writerows([*(row[key] for key in first), *(row["scores"].get(name, "") for name in classes)] for row in rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    run(main, Config)
