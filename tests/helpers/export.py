"""A saved retrieval adapter with trained weights, without training."""

from __future__ import annotations

from pathlib import Path

import torch

from vlkit.adapters import ADAPTERS
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import save_adapter
from vlkit.tasks.retrieval.model import adapter_config, build_model
from vlkit.tasks.two_tower import HeadOptions


def saved_adapter(folder: Path, base_name: str, kind: str, head: HeadOptions | None = None, **options: object) -> Path:
    """Write an adapter whose trainable weights are moved off their start; returns the folder."""
    base, adapter, head = load_base(base_name), ADAPTERS[kind](**options), head or HeadOptions()
    config = adapter_config(base, adapter, head, {})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build_model(base, adapter, head)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.02)
    save_adapter(folder, model, config)
    return folder
