"""Small architectures with the shapes of real families, known to open_clip during one test alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from open_clip import factory

from helpers import tiny

SMALL = {
    "small-clip": {"embed_dim": 16, "vision_cfg": tiny.VISION, "text_cfg": {**tiny.TEXT, "vocab_size": 49408}},
    "small-clip-quickgelu": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": tiny.VISION,
        "text_cfg": {**tiny.TEXT, "vocab_size": 49408},
    },
    "small-siglip": {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": tiny.VISION,
        "text_cfg": {
            **tiny.TEXT,
            "hf_tokenizer_name": "nobody/has-this-tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "pool_type": "last",
        },
    },
}


def add_small_architectures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let open_clip know :data:`SMALL`, whose configurations are written to ``folder``, until the test ends."""
    for name, config in SMALL.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS, folder])
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    factory._rescan_model_configs()
