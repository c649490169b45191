"""A saved retrieval adapter with trained weights, without training, and a small architecture of open_clip."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory

from vlkit.adapters import ADAPTERS
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import save_adapter
from vlkit.tasks.retrieval.model import adapter_config, build_model
from vlkit.tasks.two_tower import HeadOptions

ARCH = "vlkit-test"


def add_small_architecture(folder: Path, until: pytest.MonkeyPatch | None = None) -> str:
    """Make open_clip know a CLIP of 2 + 2 blocks for 32 px images, with CLIP's own vocabulary; returns its name.

    Args:
        folder: where its config is written.
        until: undoes it at the end of the test; None = it stays known.
    """
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    if until is not None:
        until.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
        until.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (folder / f"{ARCH}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{ARCH}.json")
    return ARCH


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
