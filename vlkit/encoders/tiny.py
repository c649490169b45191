"""The embedded ``tiny`` bases: a CLIP and a T5 that are pre-trained on drawn scenes and ship with the package.

They are ordinary open_clip and transformers models, small enough for a laptop, trained by ``tasks/pretrain/train.py``;
the model card beside the weights (``vlkit/encoders/assets/README.md``) records the command and the metrics.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import open_clip
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from vlkit.encoders.bases import ClipBase, Preprocess, TextBase, clip_base, text_base
from vlkit.encoders.tokenizer import readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

ASSETS = Path(__file__).with_name("assets")
CLIP_FILE, T5_FILE = "clip.safetensors", "t5.safetensors"
IMAGE_SIZE = 96
CONTEXT = 48
SENTINELS = 32
CLIP_VISION = {"image_size": IMAGE_SIZE, "patch_size": 12, "width": 192, "layers": 6, "head_width": 64}
CLIP_TEXT = {"context_length": CONTEXT, "width": 192, "heads": 3, "layers": 4}
PREPROCESS = Preprocess((IMAGE_SIZE, IMAGE_SIZE), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", "shortest")
T5_SIZES = {"d_model": 192, "d_kv": 32, "num_heads": 6, "d_ff": 512, "num_layers": 4, "num_decoder_layers": 4}


class TinyTokenizer:
    """Byte-level BPE for the tiny CLIP: it encodes any text, without unknown tokens.

    Ids 0 .. n - 1 are the shared vocabulary (0 = padding), n is the start token and n + 1 the end token. The end token
    has the largest id because CLIP pools at the argmax of the ids.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int = CONTEXT) -> None:
        self.vocabulary = tokenizer
        self.context_length = context_length
        self.start = tokenizer.get_vocab_size()
        self.end = self.start + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, including start and end."""
        return self.end + 1

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Texts -> ids [B, context_length] int64, zero padded; truncated texts keep the end token."""
        texts = readable([texts] if isinstance(texts, str) else list(texts))
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, encoding in zip(ids, self.vocabulary.encode_batch(texts, add_special_tokens=False), strict=True):
            tokens = [self.start, *encoding.ids[: self.context_length - 2], self.end]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    @property
    def limit(self) -> int:
        """Maximum number of tokens, including start and end."""
        return self.context_length

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each untruncated text, including start and end."""
        return [len(row.ids) + 2 for row in self.vocabulary.encode_batch(texts, add_special_tokens=False)]


@cache
def vocabulary() -> Tokenizer:
    """The byte-level BPE vocabulary that both tiny bases share."""
    return Tokenizer.from_file(str(ASSETS / "tokenizer.json"))


def new_tiny_clip(tokenizer: TinyTokenizer, image_size: int = IMAGE_SIZE) -> open_clip.CLIP:
    """The tiny CLIP with random weights, for square images of ``image_size`` pixels."""
    text: Any = CLIP_TEXT | {"vocab_size": tokenizer.vocab_size}
    vision: Any = CLIP_VISION | {"image_size": image_size}
    return open_clip.CLIP(embed_dim=192, vision_cfg=vision, text_cfg=text)


def new_tiny_t5(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """The tiny T5 with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration  # a second that the tiny CLIP can do without

    config = cast(Any, T5Config)(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        relative_attention_num_buckets=32,
        dropout_rate=0.0,
        **T5_SIZES,
    )
    return T5ForConditionalGeneration(config)


def tiny_t5_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny T5's tokenizer: the shared vocabulary with padding, end and sentinel tokens; texts get an end token."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(vocabulary().to_str())
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(SENTINELS)],
    )


def load_tiny_clip(image_size: int | None = None) -> ClipBase:
    """The pre-trained tiny CLIP; position embeddings are resized if ``image_size`` is not 96.

    Args:
        image_size: side of the images in pixels; default: 96.
    """
    size = image_size or IMAGE_SIZE
    tokenizer = TinyTokenizer(vocabulary())
    model = new_tiny_clip(tokenizer, size)
    weights = _weights(CLIP_FILE)
    resize_pos_embed(weights, model)
    model.load_state_dict(weights)
    preprocess = replace(PREPROCESS, size=(size, size))
    return clip_base(model, "tiny", tokenizer, preprocess, {"library": "vlkit", "name": "tiny", "weights": "embedded"})


def load_tiny_t5() -> TextBase:
    """The pre-trained tiny T5."""
    tokenizer = tiny_t5_tokenizer()
    model = new_tiny_t5(tokenizer)
    # Shared tensors are stored once; transformers ties them again.
    model.load_state_dict(_weights(T5_FILE), strict=False)
    model.tie_weights()
    return text_base(model, "tiny", tokenizer, {"library": "vlkit", "name": "tiny-t5", "weights": "embedded"})


def _weights(name: str) -> dict[str, Tensor]:
    """Load weights that are shipped in half precision as float32."""
    return {key: tensor.float() for key, tensor in load_file(ASSETS / name).items()}
