"""What the images and captions of a dataset of COCO's size cost before and beside training.

    python benchmarks/data_path.py --images PHOTOGRAPHS                # 113,287 training images, five captions each
    python benchmarks/data_path.py --images PHOTOGRAPHS --count 2000   # a look

The photographs are linked under new names as often as needed, and captions are random words. Prints the time and memory
of ``data_prep/coco.py``, those of ``tasks/retrieval/train.py --before false`` from its start to the end of its first
step, and the rate of reading photographs beside that of training on them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.images import IMAGE_SUFFIXES, open_image
from vlkit.data.transforms import image_transform
from vlkit.drawn.words import COLOURS
from vlkit.encoders.load import load_base
from vlkit.errors import UserError
from vlkit.files import write_json

ROOT = Path(__file__).parents[1]
HELD_OUT = 5_000
"""Images of the validation and of the test split of COCO."""
WORDS = [*COLOURS, "a", "the", "with", "on", "of", "next", "to", "standing", "sitting", "street", "man", "table", "dog"]
CAPTION_WORDS = 10
READ = 256
"""Photographs that are read to time it."""


@dataclass
class Config:
    """Measure the data path at the size of COCO."""

    images: Path
    """Folder with JPEG photographs."""
    count: int = 113_287
    """Training images."""
    base: str = "ViT-B-32"
    """Base whose input the photographs are read for, and that trains."""
    batch_size: int = 32
    """Pairs per step."""
    json: Path | None = None
    """Write the numbers to this file."""


def main(config: Config) -> None:
    photographs = sorted(f for f in config.images.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not photographs:
        raise UserError(f"--images {config.images}: no images there")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, photographs, config.count)
        row = {"training images": config.count, "captions": 5 * config.count}
        row |= prepared(folder) | started(folder, config) | read(photographs, config.base)
    row["reading, share of a step"] = row["training, images/s"] / row["reading, images/s"]
    table = Table("what", "measured")
    for what, value in row.items():
        table.add_row(what, f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    if config.json:
        write_json(config.json, row)


def make(folder: Path, photographs: list[Path], count: int) -> None:
    """Write ``images/`` and ``dataset_coco.json`` as in Karpathy's splits."""
    draw, images = random.Random(0), []
    for split, size in {"train": count, "val": min(HELD_OUT, count), "test": min(HELD_OUT, count)}.items():
        (folder / "images" / split).mkdir(parents=True)
        for _ in range(size):
            number = len(images)
            name = f"{number:012d}.jpg"
            (folder / "images" / split / name).symlink_to(photographs[number % len(photographs)].resolve())
            texts = [" ".join(draw.choices(WORDS, k=CAPTION_WORDS)) for _ in range(5)]
            sentences = [{"raw": f"{text} {number}", "sentid": 5 * number + k} for k, text in enumerate(texts)]
            about = {"filepath": split, "filename": name, "split": split, "cocoid": number, "imgid": number}
            images.append({**about, "sentences": sentences})
    write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": images})


def prepared(folder: Path) -> dict[str, float]:
    """Run the converter."""
    words = ["--annotations", folder / "dataset_coco.json", "--images", folder / "images", "--output", folder / "data"]
    began, peak = time.perf_counter(), 0.0
    with quiet(ROOT / "data_prep/coco.py", *words) as process:
        while process.poll() is None:
            peak = max(peak, peak_of(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise UserError(f"data_prep/coco.py ended with code {process.returncode}")
    return {"preparing, s": time.perf_counter() - began, "preparing, peak MiB": peak}


def started(folder: Path, config: Config) -> dict[str, float]:
    """Run training until its first report after the first step."""
    words = ["--data.root", folder / "data", "--before", "false", "--output", folder / "run", "--base", config.base]
    began = time.perf_counter()
    with quiet(ROOT / "tasks/retrieval/train.py", *words, "--batch_size", config.batch_size) as process:
        first = reported(folder / "run" / "log.jsonl", 1, process)
        start = time.perf_counter() - began
        later = reported(folder / "run" / "log.jsonl", 2, process)
        peak = peak_of(process.pid)
        process.terminate()
    steps, seconds = later["step"] - first["step"], later["train_seconds"] - first["train_seconds"]
    return {
        "start to the end of the first step, s": start,
        "training, peak MiB": peak,
        "training, images/s": steps * config.batch_size / seconds,
    }


def quiet(script: Path, *words: Any) -> subprocess.Popen[bytes]:
    """Start a script whose output is not wanted."""
    command = [sys.executable, *(str(word) for word in (script, *words))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def reported(log: Path, count: int, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Line ``count`` of a log, once it is there."""
    while process.poll() is None:
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        if len(lines) >= count and lines[count - 1].endswith("}"):
            return json.loads(lines[count - 1])
        time.sleep(0.05)
    raise UserError(f"training ended with code {process.returncode} before its report {count}")


def peak_of(pid: int) -> float:
    """Largest resident memory of a process so far, MiB; 0 once it has ended."""
    lines = [
        line
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("VmHWM")
    ]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def read(photographs: list[Path], base: str) -> dict[str, float]:
    """Decode and transform photographs in one thread, whole and at a part of their size."""
    preprocess = load_base(base).preprocess
    transform = image_transform(preprocess)
    rates = {}
    for name, side in {"reading, images/s": None, "reading with --data.draft, images/s": preprocess.draft_side}.items():
        began = time.perf_counter()
        for number in range(READ):
            transform(open_image(photographs[number % len(photographs)], min_side=side))
        rates[name] = READ / (time.perf_counter() - began)
    return rates


if __name__ == "__main__":
    run(main, Config)
