"""Tiny random bases for tests: seeded, quick to build, nothing downloaded.

Width 32, 3 or 4 blocks, 32 px images. Two calls with the same seed give the same weights.
"""

from __future__ import annotations

import timm
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor
from transformers import AutoConfig, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from vlkit.encoders.families import Family
from vlkit.encoders.towers.timm_vision import BareTimm

WIDTH = 32
EMBED_DIM = 16
IMAGE_SIZE = 32
CONTEXT_LENGTH = 12
VOCAB_SIZE = 64
END_OF_TEXT = VOCAB_SIZE - 1

VISION = {"image_size": IMAGE_SIZE, "layers": 4, "width": WIDTH, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": CONTEXT_LENGTH, "vocab_size": VOCAB_SIZE, "width": WIDTH, "heads": 2, "layers": 3}


def tiny_clip(
    seed: int = 0, vision: dict | None = None, text: dict | None = None, custom_text: bool = False, **options: object
) -> CLIP | CustomTextCLIP:
    """A ``CLIP`` with a 4-block ViT (16 patches) and a 3-block text tower, embedding width 16.

    Args:
        seed: seed of the weights; the caller's random state is left alone.
        vision: changes to the vision configuration.
        text: changes to the text configuration.
        custom_text: build a ``CustomTextCLIP``, whose text tower is a module of its own.
        options: more arguments of the model, such as ``quick_gelu=True``.
    """
    kind = CustomTextCLIP if custom_text else CLIP
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(EMBED_DIM, {**VISION, **(vision or {})}, {**TEXT, **(text or {})}, **options)
        scatter_(model)
    return model.eval()


def tiny_resnet_clip(seed: int = 0) -> CLIP:
    """A ``CLIP`` with a ResNet of 1, 2, 1 and 3 bottlenecks (widths 32 ... 256) on 64 px images."""
    return tiny_clip(seed, vision={"layers": (1, 2, 1, 3), "width": 8, "head_width": 16, "image_size": 64})


def tiny_timm_clip(seed: int = 0, name: str = "test_vit", **vision: object) -> CustomTextCLIP:
    """A ``CustomTextCLIP`` with a timm trunk for 160 px images: ``test_vit``, ``test_convnext``, ``test_resnet``."""
    timm_vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 160, **vision}
    return tiny_clip(seed, vision=timm_vision, custom_text=True)


def tiny_timm(name: str = "test_efficientnet", seed: int = 0) -> BareTimm:
    """A small timm trunk for 160 px images by itself, as a pair of encoders has it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BareTimm(timm.create_model(name, num_classes=0))
        scatter_(model)
    return model.eval()


def tiny_t5(seed: int = 0, **changes: object) -> T5ForConditionalGeneration:
    """A T5 with 3 encoder and 3 decoder blocks, width 32, 64 tokens; padding and start token 0, end token 1."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**{**settings, **changes}))
        scatter_(model)
    return model.eval()


def tiny_bert(seed: int = 0, pooler: bool = True, **changes: object) -> BertModel:
    """A BERT with 3 blocks, width 32, 64 tokens, padding id 0."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**{**settings, **changes}), add_pooling_layer=pooler)
        scatter_(model)
    return model.eval()


_LIKE_BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
_LIKE_T5 = {"vocab_size": VOCAB_SIZE, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
_SIZES = {
    "distilbert": {
        "vocab_size": VOCAB_SIZE,
        "dim": WIDTH,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 40,
    },
    "electra": _LIKE_BERT | {"embedding_size": 16},
    "deberta-v2": _LIKE_BERT
    | {
        "relative_attention": True,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    **dict.fromkeys(("t5", "mt5", "umt5"), _LIKE_T5 | {"decoder_start_token_id": 0}),
    "m2m_100": {
        "vocab_size": VOCAB_SIZE,
        "d_model": WIDTH,
        "encoder_layers": 3,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
    },
}


def tiny_text(family: Family, seed: int = 0, **changes: object) -> torch.nn.Module:
    """The encoder of a family of transformers with 3 blocks, width 32, 64 tokens; sizes are BERT's unless listed."""
    config = AutoConfig.for_model(family.kind, **{**_SIZES.get(family.kind, _LIKE_BERT), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, family.model)(config)
        scatter_(model)
    return model.eval()


def scatter_(model: torch.nn.Module) -> None:
    """Move every weight off its initial value, so that no zero, one or identity hides a mistake."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)


def images(count: int = 2, size: int = IMAGE_SIZE, seed: int = 0) -> Tensor:
    """Random images [count, 3, size, size] float32."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip_ids(lengths: tuple[int, ...] = (5, 9), context_length: int = CONTEXT_LENGTH, seed: int = 0) -> Tensor:
    """CLIP-like token ids [B, context_length] int64: words, one end of text (the largest id), zeros."""
    ids = torch.zeros(len(lengths), context_length, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for row, length in zip(ids, lengths, strict=True):
        row[: length - 1] = torch.randint(2, END_OF_TEXT, (length - 1,), generator=generator)
        row[length - 1] = END_OF_TEXT
    return ids


def padded_ids(
    lengths: tuple[int, ...] = (5, 9), width: int = CONTEXT_LENGTH, pad_id: int = 0, seed: int = 0
) -> Tensor:
    """Token ids [B, width] int64 for BERT and T5: words, then ``pad_id``."""
    ids = torch.full((len(lengths), width), pad_id, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(2, END_OF_TEXT, (length,), generator=generator)
    return ids
