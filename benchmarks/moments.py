"""What a training step of moment retrieval saves for its backward as videos grow, and what cached states save in time.

    python benchmarks/moments.py                       # R2-Tuning, embedded base, on the CPU
    python benchmarks/moments.py --kind sherl --clips 32 --queries_per_video 4 --json runs/moments.json

Prints, for each length, the bytes of the frozen states that are read, the saved activations of a step (states included)
with the large part recomputed (lean) and without, and the CPU seconds of a step from decoded frames and from cached
states.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.load import load_base
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.memory.live import LiveBytes
from vlkit.tap_cache.rows import RowLayout, TapBatch
from vlkit.tasks.moment_retrieval.head import MomentOptions
from vlkit.tasks.moment_retrieval.losses import MomentLoss, moment_losses
from vlkit.tasks.moment_retrieval.model import METHODS, MomentModel, build_model

TEXT = "a red ball moves to the right"


@dataclass
class Config:
    """Measure steps of moment retrieval on random frames."""

    base: str = "tiny"
    """Base whose towers are read."""
    kind: str = "r2"
    """Method, one with an option ``lean``: r2, sherl …"""
    clips: list[int] = field(default_factory=lambda: [16, 32, 64])
    """Lengths of the videos in clips."""
    batch_size: int = 4
    """Videos per step."""
    queries_per_video: int = 1
    """Queries about each of them."""
    hidden: int = 64
    """Width of the clip states."""
    json: Path | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        if not hasattr(METHODS.get(self.kind), "lean"):
            lean = ", ".join(name for name, options in METHODS.items() if hasattr(options, "lean"))
            raise UserError(f"--kind {self.kind}: give one of {lean}")


def main(config: Config) -> None:
    rows = [measure(config, clips) for clips in config.clips]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if config.json:
        write_json(config.json, rows)


def measure(config: Config, clips: int) -> dict[str, Any]:
    """The row of one length."""
    torch.manual_seed(0)
    base = load_base(config.base)
    size = (config.batch_size * clips, 3, *base.preprocess.size)
    frames = Frames.of(list(torch.randint(0, 256, size, dtype=torch.uint8).split(clips)))
    ids = base.text.trim(base.tokenize([TEXT] * config.batch_size * config.queries_per_video))
    row: dict[str, Any] = {"clips": clips}
    for lean in (True, False):
        model = build_model(base, METHODS[config.kind](lean=lean), MomentOptions(config.hidden)).train()
        cached = states_of(model, frames)
        row["states MiB"] = cached.pixels.data.numel() / 2**20
        row["saved MiB, lean" if lean else "saved MiB, plain"] = saved(model, cached, ids) / 2**20
        if lean:
            row["step from frames, s"] = seconds(model, frames, ids)
            row["step from states, s"] = seconds(model, cached, ids)
    return row


def states_of(model: MomentModel, frames: Frames) -> Frames:
    """The states of the frames, in the bytes of the tap cache (bf16)."""
    parts = [model.image.read(model._pixels(part)) for part in frames.chunks(32)]
    layout = RowLayout.of(*parts[0], "bf16", False, getattr(model.image.adapter, "even", False))
    batch = TapBatch("states", layout, list(range(len(frames))))
    encoded = [layout.encode(*part) for part in parts]
    batch.data, batch.units, batch.summary = (torch.cat(column) for column in zip(*encoded, strict=True))
    return Frames(batch, frames.mask)  # type: ignore[arg-type]


def loss_of(model: MomentModel, frames: Frames, ids: torch.Tensor) -> torch.Tensor:
    """The loss of a step with random targets."""
    count, clips = len(ids), frames.mask.shape[1]
    videos = torch.arange(len(frames.mask)).repeat_interleave(count // len(frames.mask))
    predicted = model(frames, ids, videos)
    windows = torch.tensor([[[1.0, 4.0]]]).expand(count, -1, -1)
    positive = torch.full((count,), 2)
    return moment_losses(predicted, windows, torch.rand(count, clips), positive, MomentLoss(), videos)["loss"]


def saved(model: MomentModel, frames: Frames, ids: torch.Tensor) -> int:
    """Bytes alive for backward at the end of a forward."""
    with LiveBytes() as live:
        return live.kept_for(loss_of(model, frames, ids), model)


def seconds(model: MomentModel, frames: Frames, ids: torch.Tensor) -> float:
    """CPU seconds of a step."""
    loss_of(model, frames, ids).backward()
    began = time.process_time()
    loss_of(model, frames, ids).backward()
    return time.process_time() - began


if __name__ == "__main__":
    run(main, Config)
