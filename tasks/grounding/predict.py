"""Find what a text refers to: boxes in one image, or for every text of a split.

    python tasks/grounding/predict.py --model runs/grounding/… --image FILE --text "the left dog" --draw boxes.png
    python tasks/grounding/predict.py --model runs/grounding/… --data.root DIR --split val --json boxes.json

Boxes are x1, y1, x2, y2 in pixels of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.config import about, run
from vlkit.cli.show import Console
from vlkit.data.draw_boxes import draw_boxes, write_png, write_sheet
from vlkit.data.images import open_image, read_image
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.grounding.evaluate import find_split
from vlkit.tasks.grounding.pipeline import GroundingPipeline
from vlkit.tasks.grounding.task import TASK
from vlkit.tasks.load import load

SHEET = 12
"""Most images of a split that are drawn."""


@dataclass
class Data:
    """Dataset for --split."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass
class Config:
    """Find what a text refers to, in one image or in a split."""

    model: Path
    """Run or adapter folder."""
    image: Path | None = None
    """Image file."""
    text: str | None = None
    """Text to find in the image."""
    split: str | None = None
    """Predict for a whole split instead; test means testA and testB if there is no split of that name."""
    data: Data = field(default_factory=Data)
    k: int = 1
    """Most boxes per text. With --split a model gives at most --head.queries boxes; for one image there may be more."""
    draw: Path | None = None
    """Write a PNG: the image with its boxes, or a sheet of images of the split (annotated boxes in white)."""
    json: Path | None = None
    """Write the boxes and their scores to this file."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    one = config.image is not None or config.text is not None
    if one == (config.split is not None) or (one and None in (config.image, config.text)):
        raise UserError('give either --image FILE with --text "…", or --split NAME')
    if config.k < 1:
        raise UserError(f"--k {config.k}: must be at least 1")
    pipeline = load(config.model, config.device, task=TASK.name)
    predictions = one_image(pipeline, config) if one else whole_split(pipeline, config)
    if config.json:
        write_json(config.json, predictions)


def one_image(pipeline: GroundingPipeline, config: Config) -> dict[str, Any]:
    """Print (and draw) the boxes of one text."""
    with about("--image"):
        image = open_image(config.image)
    found = pipeline.candidates(image, config.text, config.k)
    console = Console()
    for candidate in found:
        corners = ", ".join(f"{side:.1f}" for side in candidate.box)
        console.print(f"{config.text}: [{corners}] score {candidate.score:.2f}")
    if config.draw:
        write_png(draw_boxes(image, [candidate.box for candidate in found], config.text), config.draw)
    boxes = [{"box": list(candidate.box), "score": candidate.score} for candidate in found]
    return {"image": str(config.image), "text": config.text, **boxes[0], "boxes": boxes}


def whole_split(pipeline: GroundingPipeline, config: Config) -> list[dict[str, Any]]:
    """Boxes of every text of a split, as used by the metric: not clipped to the image."""
    dataset = TASK.dataset(config.data.root)
    records, found = find_split(pipeline.locator, dataset, config.split)
    predictions = []
    for record, one in zip(records, found, strict=True):
        boxes, scores = one.boxes[: config.k].tolist(), one.scores[: config.k].tolist()
        ranked = [{"box": box, "score": score} for box, score in zip(boxes, scores, strict=True)]
        named = {"id": record["id"], "image": record["image"], "text": record["text"]}
        predictions.append({**named, **ranked[0], "boxes": ranked})
    if config.draw:
        shown = {
            prediction["image"]: (record, prediction) for record, prediction in zip(records, predictions, strict=True)
        }
        sheet = [
            draw_boxes(
                read_image(dataset, record),
                [entry["box"] for entry in prediction["boxes"]],
                record["text"],
                record.get("boxes", [record["box"]]),
            )
            for record, prediction in list(shown.values())[:SHEET]
        ]
        write_sheet(sheet, config.draw)
    Console().print(f"{len(predictions)} texts of {dataset.name}/{config.split}")
    return predictions


if __name__ == "__main__":
    run(main, Config)
