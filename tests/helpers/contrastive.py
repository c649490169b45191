"""Tiny random CLIP and SigLIP models of transformers, and folders of them as ``save_pretrained`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from helpers.tiny import CONTEXT_LENGTH, EMBED_DIM, IMAGE_SIZE, WIDTH, scatter_

KINDS = ("clip", "siglip")
PAD, END = 0, 1
_BLOCKS = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_VISION = {**_BLOCKS, "image_size": IMAGE_SIZE, "patch_size": 8}
_TEXT = {
    **_BLOCKS,
    "vocab_size": 16,
    "max_position_embeddings": CONTEXT_LENGTH,
    "pad_token_id": PAD,
    "bos_token_id": END,
    "eos_token_id": END,
}


def contrastive_model(kind: str, seed: int = 0, **text: Any) -> Any:
    """A ``CLIPModel`` or ``SiglipModel`` with two towers of 3 blocks, width 32, 32 px images and 12 tokens.

    Args:
        kind: ``clip`` or ``siglip``.
        seed: seed of the weights.
        text: changes to the text configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "clip":
            sides = {"vision_config": _VISION, "text_config": {**_TEXT, **text}}
            model: Any = CLIPModel(CLIPConfig(**sides, projection_dim=EMBED_DIM))
        else:
            sides = {"vision_config": _VISION, "text_config": {**_TEXT, "projection_size": WIDTH, **text}}
            model = SiglipModel(SiglipConfig(**sides))
        scatter_(model)
    return model.eval()


def save_contrastive(folder: Path, kind: str, seed: int = 0) -> Any:
    """Write a model, its tokenizer and its image processor to a folder; returns the model."""
    model = contrastive_model(kind, seed)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    if kind == "clip":
        side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
    else:
        SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of a few words that ends each text with ``</s>`` (id 1) and pads with id 0."""
    vocabulary = {"<pad>": PAD, "</s>": END, "<unk>": 2, "a": 3, "dog": 4, "red": 5, "cube": 6}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def save_naflex(folder: Path) -> Any:
    """Write a ``Siglip2Model`` (NaFlex) with 5 x 5 position embeddings of 8 px patches; returns it."""
    vision = {**_BLOCKS, "patch_size": 8, "num_patches": 25}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Siglip2Model(Siglip2Config(vision_config=vision, text_config={**_TEXT, "projection_size": WIDTH}))
        scatter_(model)
    model.eval().save_pretrained(folder)
    save_tokenizer(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=25).save_pretrained(folder)
    return model
