"""transformers' registry of models: not imported for bases that need none of it, and itself where something does."""

from __future__ import annotations

from helpers.fresh_python import python

SCRIPT = """
import sys
from vlkit.cli.compiler import defer_compiler
from vlkit.cli.model_registry import defer_model_registry
defer_compiler()
defer_model_registry()
from vlkit.encoders.load import load_base
base = load_base("tiny")
assert base.text(base.tokenize(["a red ball"])).shape == (1, 192)
assert "open_clip.hf_model" in sys.modules and "transformers.models" not in sys.modules
"""


def test_a_base_of_open_clip_is_loaded_without_it() -> None:
    python(SCRIPT)


def test_whoever_asks_transformers_gets_the_real_classes() -> None:
    python(
        SCRIPT
        + """
import transformers
from transformers import AutoConfig
from transformers.models.auto import configuration_auto, modeling_auto
assert AutoConfig is configuration_auto.AutoConfig and transformers.AutoModel is modeling_auto.AutoModel
"""
    )


def test_text_towers_of_open_clip_are_made_by_it() -> None:
    python(
        SCRIPT
        + """
import json, pathlib, tempfile, torch
from open_clip.hf_model import HFTextEncoder
with tempfile.TemporaryDirectory() as folder:
    about = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    about |= {"intermediate_size": 16, "vocab_size": 30, "max_position_embeddings": 10}
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(about))
    tower = HFTextEncoder(folder, output_dim=4, proj_type="linear", pooler_type="mean_pooler", pretrained=False)
assert type(tower.transformer).__name__ == "BertModel" and type(tower.config).__name__ == "BertConfig"
assert tower(torch.tensor([[1, 2, 3]])).shape == (1, 4)
"""
    )
