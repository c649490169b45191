"""Sizes of the transformers text towers that open_clip's architectures name, so that none has to be looked up online.

Figures are those of the published ``config.json`` of each model.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from typing import Any

from transformers import (
    BertConfig,
    M2M100Config,
    MT5Config,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_T5 = {"decoder_start_token_id": 0}
_NLLB = {"vocab_size": 256206, "d_model": 1024, "decoder_start_token_id": 2}

# Name on the hub -> (configuration class, what differs from its defaults).
KNOWN: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert-base-uncased": (BertConfig, {}),
    "bert-base-cased": (BertConfig, {"vocab_size": 28996}),
    "bert-large-uncased": (BertConfig, _LARGE),
    "bert-large-cased": (BertConfig, _LARGE | {"vocab_size": 28996}),
    "roberta-base": (RobertaConfig, _ROBERTA),
    "roberta-large": (RobertaConfig, _ROBERTA | _LARGE),
    "xlm-roberta-base": (XLMRobertaConfig, _ROBERTA | {"vocab_size": 250002}),
    "xlm-roberta-large": (XLMRobertaConfig, _ROBERTA | _LARGE | {"vocab_size": 250002}),
    "t5-small": (T5Config, _T5),
    "t5-base": (T5Config, _T5 | {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "t5-large": (T5Config, _T5 | {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16}),
    "t5-3b": (T5Config, _T5 | {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32}),
    "google/flan-t5-base": (
        T5Config,
        _T5 | _GATED | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    ),
    "google/flan-t5-large": (
        T5Config,
        _T5 | _GATED | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    ),
    "google/mt5-base": (
        MT5Config,
        _T5 | _GATED | {"vocab_size": 250112, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    ),
    "google/mt5-xl": (
        MT5Config,
        _T5 | _GATED | {"vocab_size": 250112, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    ),
    "facebook/nllb-200-distilled-600M": (
        M2M100Config,
        _NLLB | {"encoder_layers": 12, "decoder_layers": 12, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096},
    ),
    "facebook/nllb-200-distilled-1.3B": (
        M2M100Config,
        _NLLB | {"encoder_layers": 24, "decoder_layers": 24, "encoder_ffn_dim": 8192, "decoder_ffn_dim": 8192},
    ),
}


def known_config(name: str) -> PreTrainedConfig | None:
    """The configuration of a published model, or None if it is not listed here."""
    if name not in KNOWN:
        return None
    kind, changes = KNOWN[name]
    return kind(**changes)


@contextlib.contextmanager
def offline_text_cfg(text_cfg: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a copy of an open_clip text configuration whose transformers model needs no look-up on the hub.

    open_clip builds such a tower from a name; the copy names a temporary folder that holds the known configuration.
    Native text towers, and names that are not listed, pass unchanged. The tower starts from random weights.
    """
    text_cfg = copy.deepcopy(text_cfg)
    name = text_cfg.get("hf_model_name")
    config = known_config(name) if name else None
    with tempfile.TemporaryDirectory() as folder:
        if name:
            text_cfg["hf_model_pretrained"] = False
        if config is not None:
            config.save_pretrained(folder)
            text_cfg["hf_model_name"] = folder
        yield text_cfg
