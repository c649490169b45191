"""A tiny tower of each base family with a batch for it, and what tests of methods do with them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from helpers import tiny
from vlkit.encoders.stage import stage_hf, stage_text, stage_vision
from vlkit.encoders.staged import StagedEncoder

TOWERS: dict[str, tuple[Callable[[], StagedEncoder], Callable[[], Tensor]]] = {
    "vit": (lambda: stage_vision(tiny.tiny_clip()), lambda: tiny.images(3)),
    "timm": (lambda: stage_vision(tiny.tiny_timm_clip()), lambda: tiny.images(2, 160)),
    "convnext": (lambda: stage_vision(tiny.tiny_timm_clip(name="test_convnext")), lambda: tiny.images(2, 160)),
    "resnet": (lambda: stage_vision(tiny.tiny_resnet_clip()), lambda: tiny.images(3, 64)),
    "clip_text": (lambda: stage_text(tiny.tiny_clip()), lambda: tiny.clip_ids((5, 9, 12))),
    "bert": (lambda: stage_hf(tiny.tiny_bert()), lambda: tiny.padded_ids((5, 9, 12))),
    "t5": (lambda: stage_hf(tiny.tiny_t5()), lambda: tiny.padded_ids((5, 9, 12))),
}
"""Base family -> its tower, and a batch for it."""
SPATIAL = ("resnet", "convnext")
TEXT = ("clip_text", "bert", "t5")


@cache
def prepared(tower: str) -> StagedEncoder:
    return TOWERS[tower][0]()


def build(options: Any, tower: str, reads: str = "pooled", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return options.build(deepcopy(prepared(tower)), reads).eval()


def view(model: nn.Module, x: Tensor, reads: str) -> Tensor:
    return getattr(model(x), reads)


def train(model: nn.Module, x: Tensor, reads: str, steps: int = 3) -> set[str]:
    """Take optimizer steps on a loss with every output in it; returns the weights that never had a gradient."""
    for name, score in model.named_modules():  # SHERL: with few examples the ReLU may clip all scores of a layer
        if name.endswith("aggregator.score") or "token_scores." in name:
            nn.init.ones_(score.bias)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    unused = set(trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01) if trained else None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.train()
        for _ in range(steps if trained else 0):
            out = view(model, x, reads)
            (out * torch.randn_like(out)).sum().backward()
            unused -= {name for name, p in trained.items() if p.grad is not None and p.grad.count_nonzero()}
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    return unused
