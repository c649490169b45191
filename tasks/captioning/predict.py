"""Caption a single image, a folder of images, or a split of a prepared dataset.

    python tasks/captioning/predict.py --model runs/captioning/… --image FILE
    python tasks/captioning/predict.py --model runs/captioning/… --images FOLDER --output captions.jsonl
    python tasks/captioning/predict.py --model runs/captioning/… --data.root DIR --split test --output captions.json

A folder's captions are written as they are made, a line per image in the form that data_prep/from_folder.py reads; run
again after an interruption, and only the missing ones are made. A split's captions have the form of COCO results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.images import MediaError, open_image
from vlkit.data.scan import find_media
from vlkit.errors import UserError
from vlkit.files import read_text, text_lines, write_json
from vlkit.tasks.captioning.evaluate import caption_records
from vlkit.tasks.captioning.task import TASK
from vlkit.tasks.load import load

AT_ONCE = 32
"""Images of a folder per batch."""


@dataclass
class Data:
    """Dataset to caption."""

    root: Path | None = None
    """Prepared dataset for retrieval; default: the demo dataset."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset."""
    style: Literal["plain", "drawn"] = "plain"
    """Style of the demo dataset: plain drawings, known to the embedded bases, or hand-drawn ones, new to them."""


@dataclass
class Config:
    """Caption a single image, a folder, or a split."""

    model: Path
    """Run or adapter folder."""
    image: Path | None = None
    """Caption this image and print the result."""
    images: Path | None = None
    """Caption every image of this folder, including sub-folders."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to caption."""
    output: Path | None = None
    """File to write; default: captions.jsonl for a folder, captions.json for a split."""
    k: int = 3
    """Captions to show for --image."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if self.image is not None and self.images is not None:
            raise UserError("--image and --images: give one of the two")
        wrong, right = (".json", ".jsonl") if self.images is not None else (".jsonl", ".json")
        if self.image is None and self.output is not None and self.output.suffix == wrong:
            what = "a folder is written as a line per image" if self.images is not None else "a split as COCO results"
            raise UserError(f"--output {self.output}: {what}; name it {self.output.stem}{right}")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    pipeline = load(config.model, config.device, task=TASK.name)
    if config.image is not None:
        caption_one(pipeline, config.image, config.k)
    elif config.images is not None:
        caption_folder(pipeline, config.images, config.output or Path("captions.jsonl"))
    else:
        caption_split(pipeline, config)


def caption_one(pipeline: Any, image: Path, k: int) -> None:
    """Print the best captions of one image."""
    try:
        found = pipeline.captions(image, k)
    except MediaError as error:
        raise UserError(f"--image {error}") from None
    console = Console()
    for caption, probability in found:
        console.print(f"{probability:8.2g}  {caption}")


def caption_folder(pipeline: Any, folder: Path, output: Path) -> None:
    """Caption the images of a folder that ``output`` does not hold yet; unreadable ones are listed."""
    scan, console = find_media(folder, "images", "--images", utf8_only=True), Console(stderr=True)
    done = already(output)
    missing = [name for name in scan.names if name not in done]
    bad = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "a", encoding="utf-8") as file:
        for start in range(0, len(missing), AT_ONCE):
            opened = []
            for name in missing[start : start + AT_ONCE]:
                try:
                    opened.append((name, open_image(folder / name)))
                except MediaError as error:
                    bad += 1
                    console.print(f"left out: {error}")
            captions = pipeline.caption_all([image for _, image in opened]) if opened else []
            for (name, _), caption in zip(opened, captions, strict=True):
                file.write(json.dumps({"image": name, "text": caption}, ensure_ascii=False) + "\n")
            file.flush()
            console.print(f"{min(start + AT_ONCE, len(missing))} of {len(missing)} images", highlight=False)
    kept = len(scan.names) - len(missing)
    Console().print(f"{len(missing) - bad} captions written, {kept} kept, {bad} images unreadable: {output}")
    if scan.note():
        print(f"note: {scan.note()}")


def already(output: Path) -> set[str]:
    """The images that a file of captions holds; a last line that was cut short by a crash is removed."""
    if not output.exists():
        return set()
    text, names = read_text(output), set()
    whole = text[: text.rfind("\n") + 1]
    for number, line in enumerate(text_lines(whole), start=1):
        try:
            names.add(json.loads(line)["image"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{output}:{number}: not a line of captions; give another --output") from None
    if whole != text:
        output.write_text(whole, encoding="utf-8")
    return names


def caption_split(pipeline: Any, config: Config) -> None:
    """Write the captions of a split as COCO results: ``[{"image_id", "caption"}]``."""
    dataset = TASK.dataset(config.data.root, size=config.data.size, style=config.data.style)
    records = dataset.records(config.split)
    captions = caption_records(pipeline.captioner, dataset, records, f"{config.split} captions")
    output = config.output or Path("captions.json")
    rows = [{"image_id": image_id(r["id"]), "caption": text} for r, text in zip(records, captions, strict=True)]
    write_json(output, rows)
    Console().print(f"{len(rows)} captions: {output}")


def image_id(record_id: str) -> int | str:
    """The number in an id such as ``coco/391895``; other ids stay as they are."""
    number = record_id.rpartition("/")[2]
    return int(number) if number.isdecimal() else record_id


if __name__ == "__main__":
    run(main, Config)
