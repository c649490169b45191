"""Text encoders of transformers: one row per family holds everything that staging, methods and loading need.

To add a family, add a row to :data:`FAMILIES`; no other module names one. Rows hold only strings and numbers: class
names of transformers, and dotted paths from a module to its parts; a number in a path indexes a list (``layer.-1``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from vlkit.encoders.blocks.parts import AttentionParts, BlockParts
from vlkit.encoders.contrastive_families import CONTRASTIVE, Contrastive


@dataclass(frozen=True)
class Family:
    """A family of text encoders.

    Attributes:
        name: common name.
        kind: ``model_type`` in its ``config.json``.
        model: transformers class that loads the encoder (and possibly more).
        encoder: class of the module that holds the blocks: ``model`` itself or its ``encoder``.
        block: class of the blocks.
        blocks: path from the encoder to the list of its blocks.
        norm: path from the encoder to the norm after its last block; None = it has none.
        pool: pooling of a text: the first token (through the model's pooler, if it has one) or the mean.
        parts: paths to the parts of a block; None = its attention is not plain softmax attention, so methods that query
            or narrow blocks (vqt, lst) do not support this family.
        shares_bias: the first block computes the relative position bias for all blocks.
        generator: transformers class that loads encoder, decoder and output layer together; None = no decoder.
        only_with: configuration values that are required for the blocks to form a plain chain.
        published: name on the hub -> how its configuration differs from the defaults of transformers, so that these
            architectures can be built without access to the hub.
    """

    name: str
    kind: str
    model: str
    encoder: str
    block: str
    blocks: str
    pool: Literal["first", "mean"]
    norm: str | None = None
    parts: BlockParts | None = None
    shares_bias: bool = False
    generator: str | None = None
    only_with: dict[str, Any] = field(default_factory=dict)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)

    def unfit(self, config: Any) -> str | None:
        """The configuration value that prevents staging, as ``name = value``; None if there is none."""
        found = {name: getattr(config, name, wanted) for name, wanted in self.only_with.items()}
        wrong = [name for name, wanted in self.only_with.items() if found[name] != wanted]
        return f"{wrong[0]} = {found[wrong[0]]!r}" if wrong else None


def _large(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return sizes | changes


def _t5(d_model: int, d_ff: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    sizes = {"d_model": d_model, "d_ff": d_ff, "num_layers": layers, "num_heads": heads}
    return {"decoder_start_token_id": 0, **sizes, **changes}


def _gated_t5(d_model: int, d_ff: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return _t5(d_model, d_ff, layers, heads, **gated, **changes)


def _nllb(layers: int, d_ff: int) -> dict[str, Any]:
    sizes = {"encoder_layers": layers, "decoder_layers": layers, "encoder_ffn_dim": d_ff, "decoder_ffn_dim": d_ff}
    return {"vocab_size": 256206, "d_model": 1024, "decoder_start_token_id": 2, **sizes}


_BERT_MLP = {
    "expand": ("intermediate.dense",),
    "shrink": "output.dense",
    "mlp": ("intermediate", "output.dense"),
    "mlp_norm": "output.LayerNorm",
    "widths": ("hidden_size", "intermediate_size"),
    "heads": "num_attention_heads",
}
_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DEBERTA_V3 = {
    "vocab_size": 128100,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}

BERT = Family(
    name="BERT",
    kind="bert",
    model="BertModel",
    encoder="BertModel",
    block="BertLayer",
    blocks="encoder.layer",
    pool="first",
    parts=BlockParts(
        norm_first=False,
        attention=AttentionParts(
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            out="attention.output.dense",
            norm="attention.output.LayerNorm",
            heads="attention.self.num_attention_heads",
        ),
        **_BERT_MLP,
    ),
    published={
        "bert-base-uncased": {},
        "bert-base-cased": {"vocab_size": 28996},
        "bert-large-uncased": _large(),
        "bert-large-cased": _large(vocab_size=28996),
        "sentence-transformers/all-MiniLM-L6-v2": {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "intermediate_size": 1536,
        },
    },
)
ROBERTA = replace(
    BERT,
    name="RoBERTa",
    kind="roberta",
    model="RobertaModel",
    encoder="RobertaModel",
    block="RobertaLayer",
    published={
        "roberta-base": _ROBERTA,
        "roberta-large": _large(**_ROBERTA),
        "distilroberta-base": _ROBERTA | {"num_hidden_layers": 6},
    },
)
XLM_ROBERTA = replace(
    BERT,
    name="XLM-R",
    kind="xlm-roberta",
    model="XLMRobertaModel",
    encoder="XLMRobertaModel",
    block="XLMRobertaLayer",
    published={
        "xlm-roberta-base": _ROBERTA | {"vocab_size": 250002},
        "xlm-roberta-large": _large(**_ROBERTA, vocab_size=250002),
    },
)
ELECTRA = replace(
    BERT,
    name="ELECTRA",
    kind="electra",
    model="ElectraModel",
    encoder="ElectraModel",
    block="ElectraLayer",
    published={
        "google/electra-small-discriminator": {},
        "google/electra-base-discriminator": {
            "embedding_size": 768,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
        "google/electra-large-discriminator": _large(embedding_size=1024),
    },
)
MPNET = Family(
    name="MPNet",
    kind="mpnet",
    model="MPNetModel",
    encoder="MPNetModel",
    block="MPNetLayer",
    blocks="encoder.layer",
    pool="first",
    parts=BlockParts(
        norm_first=False,
        attention=AttentionParts(
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            out="attention.attn.o",
            norm="attention.LayerNorm",
            heads="attention.attn.num_attention_heads",
        ),
        **_BERT_MLP,
    ),
    published={
        name: {"vocab_size": 30527, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}
        for name in ("microsoft/mpnet-base", "sentence-transformers/all-mpnet-base-v2")
    },
)
DISTILBERT = Family(
    name="DistilBERT",
    kind="distilbert",
    model="DistilBertModel",
    encoder="DistilBertModel",
    block="TransformerBlock",
    blocks="transformer.layer",
    pool="first",
    parts=BlockParts(
        norm_first=False,
        attention=AttentionParts(
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            out="attention.out_lin",
            norm="sa_layer_norm",
            heads="attention.n_heads",
        ),
        expand=("ffn.lin1",),
        shrink="ffn.lin2",
        mlp=("ffn",),
        mlp_norm="output_layer_norm",
        widths=("dim", "hidden_dim"),
        heads="n_heads",
    ),
    published={"distilbert-base-uncased": {}, "distilbert-base-cased": {"vocab_size": 28996}},
)
DEBERTA = Family(
    name="DeBERTa",
    kind="deberta-v2",
    model="DebertaV2Model",
    encoder="DebertaV2Model",
    block="DebertaV2Layer",
    blocks="encoder.layer",
    pool="first",
    only_with={"conv_kernel_size": 0},
    published={
        "microsoft/deberta-v3-xsmall": _DEBERTA_V3
        | {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
        "microsoft/deberta-v3-small": _DEBERTA_V3
        | {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072},
        "microsoft/deberta-v3-base": _DEBERTA_V3
        | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        "microsoft/deberta-v3-large": _large(**_DEBERTA_V3),
    },
)
T5 = Family(
    name="T5",
    kind="t5",
    model="T5EncoderModel",
    encoder="T5Stack",
    block="T5Block",
    blocks="block",
    norm="final_layer_norm",
    pool="mean",
    parts=BlockParts(
        norm_first=True,
        attention=AttentionParts(
            query="layer.0.SelfAttention.q",
            key="layer.0.SelfAttention.k",
            value="layer.0.SelfAttention.v",
            out="layer.0.SelfAttention.o",
            norm="layer.0.layer_norm",
            heads="layer.0.SelfAttention.n_heads",
            scaled=False,
        ),
        expand=("layer.-1.DenseReluDense.wi", "layer.-1.DenseReluDense.wi_0", "layer.-1.DenseReluDense.wi_1"),
        shrink="layer.-1.DenseReluDense.wo",
        mlp=("layer.-1.DenseReluDense",),
        mlp_norm="layer.-1.layer_norm",
        widths=("d_model", "d_kv", "d_ff"),
        cross=AttentionParts(
            query="layer.1.EncDecAttention.q",
            key="layer.1.EncDecAttention.k",
            value="layer.1.EncDecAttention.v",
            out="layer.1.EncDecAttention.o",
            norm="layer.1.layer_norm",
            heads="layer.1.EncDecAttention.n_heads",
            scaled=False,
        ),
    ),
    shares_bias=True,
    generator="T5ForConditionalGeneration",
    published={
        "t5-small": _t5(512, 2048, 6, 8),
        "t5-base": _t5(768, 3072, 12, 12),
        "t5-large": _t5(1024, 4096, 24, 16),
        "t5-3b": _t5(1024, 16384, 24, 32, d_kv=128),
        "google/flan-t5-base": _gated_t5(768, 2048, 12, 12),
        "google/flan-t5-large": _gated_t5(1024, 2816, 24, 16),
    },
)
MT5 = replace(
    T5,
    name="mT5",
    kind="mt5",
    model="MT5EncoderModel",
    encoder="MT5Stack",
    block="MT5Block",
    generator="MT5ForConditionalGeneration",
    published={
        "google/mt5-base": _gated_t5(768, 2048, 12, 12, vocab_size=250112),
        "google/mt5-xl": _gated_t5(2048, 5120, 24, 32, vocab_size=250112),
    },
)
UMT5 = replace(
    T5,
    name="UMT5",
    kind="umt5",
    model="UMT5EncoderModel",
    encoder="UMT5Stack",
    block="UMT5Block",
    shares_bias=False,
    generator="UMT5ForConditionalGeneration",
    published={
        "google/umt5-small": _gated_t5(512, 1024, 8, 6, vocab_size=256384),
        "google/umt5-base": _gated_t5(768, 2048, 12, 12, vocab_size=256384),
    },
)
M2M100 = Family(
    name="NLLB/M2M100",
    kind="m2m_100",
    model="M2M100Model",
    encoder="M2M100Encoder",
    block="M2M100EncoderLayer",
    blocks="layers",
    norm="layer_norm",
    pool="first",
    parts=BlockParts(
        norm_first=True,
        attention=AttentionParts(
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            out="self_attn.out_proj",
            norm="self_attn_layer_norm",
            heads="self_attn.num_heads",
        ),
        expand=("fc1",),
        shrink="fc2",
        mlp=("fc1", "activation_fn", "fc2"),
        mlp_norm="final_layer_norm",
        widths=("d_model", "encoder_ffn_dim"),
        heads="encoder_attention_heads",
    ),
    published={
        "facebook/nllb-200-distilled-600M": _nllb(12, 4096),
        "facebook/nllb-200-distilled-1.3B": _nllb(24, 8192),
    },
)

FAMILIES: tuple[Family, ...] = (
    *(BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, ELECTRA, MPNET, DEBERTA),
    *(T5, MT5, UMT5, M2M100),
)


def family_of_kind(kind: str) -> Family | None:
    """The family with this ``model_type``, or None."""
    return next((family for family in FAMILIES if family.kind == kind), None)


def family_of_encoder(module: nn.Module | None) -> Family | None:
    """The family whose blocks ``module`` holds, or None."""
    return next((family for family in FAMILIES if _is(module, family.encoder)), None)


def known_family(module: nn.Module) -> Family:
    """The family whose blocks ``module`` holds; the module is known to have one."""
    family = family_of_encoder(module)
    assert family is not None, type(module).__name__
    return family


def family_of_block(block: nn.Module) -> Family | Contrastive | None:
    """The family that ``block`` belongs to, or None."""
    return next((family for family in (*FAMILIES, *CONTRASTIVE) if _is(block, family.block)), None)


def _is(module: nn.Module | None, name: str) -> bool:
    # Other libraries have classes with the same names.
    return type(module).__name__ == name and type(module).__module__.startswith("transformers.")


def family_names() -> str:
    """The names of the families, for messages."""
    return ", ".join(family.name for family in FAMILIES)


def family_kinds() -> str:
    """The ``model_type`` of each family, for messages."""
    return ", ".join(family.kind for family in FAMILIES)


def known_names() -> list[str]:
    """Names on the hub whose configurations are listed here."""
    return [name for family in FAMILIES for name in family.published]


def known_config(name: str) -> Any:
    """The configuration of a published model, or None if it is not listed here."""
    from transformers import AutoConfig

    for family in FAMILIES:
        if name in family.published:
            return AutoConfig.for_model(family.kind, **family.published[name])
    return None
