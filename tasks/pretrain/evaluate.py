"""Evaluate an embedded CLIP base on each drawing style: R@1 and a linear probe on patch tokens.

python tasks/pretrain/evaluate.py
python tasks/pretrain/evaluate.py --weights runs/pretrain/clip/model.safetensors --scenes 200
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from vlkit.cli.config import run
from vlkit.encoders.tiny import ASSETS, CLIP_FILE, TinyTokenizer, new_tiny_clip, vocabulary
from vlkit.errors import UserError
from vlkit.tasks.pretrain.objective import Objective
from vlkit.tasks.pretrain.styles_eval import draw_styles, style_metrics


@dataclass
class Config:
    """Evaluate a base on every style."""

    weights: Path | None = None
    """Weights of a pre-training run; default: the embedded ones."""
    scenes: int = 1000
    """Held-out scenes of each style; the probe takes three times as many."""
    seed: int = 2024
    """Seed of the drawn scenes."""
    workers: int = 0
    """Processes that draw scenes."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    name = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    path = config.weights or ASSETS / CLIP_FILE
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file; give the model.safetensors of a pre-training run")
    tokenizer = TinyTokenizer(vocabulary())
    model = new_tiny_clip(tokenizer)
    model.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()})
    objective = Objective(model.eval().to(name), tokenizer, torch.device(name), "none", 0.0)
    drawn = draw_styles(config.seed, tokenizer, config.workers, scenes=config.scenes)
    print(json.dumps(style_metrics(objective, drawn), indent=2))


if __name__ == "__main__":
    run(main, Config)
