"""The tokenizer of any base as one of transformers, whose files other programs read (``tokenizer.json``)."""

from __future__ import annotations

from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlkit.encoders.tiny import TinyTokenizer
from vlkit.encoders.tokenizer import ClipTokenizer, HfTokenizer
from vlkit.errors import UserError

START, END = "<start_of_text>", "<end_of_text>"


def as_transformers(tokenize: Any) -> PreTrainedTokenizerBase:
    """A transformers tokenizer that gives the same ids up to the padding.

    CLIP's own tokenizer pads with id 0, which is also "!"; here it pads with the end token. The towers with this
    tokenizer are causal and pool the first end token, so that their embeddings stay the same.

    Args:
        tokenize: the tokenizer of a base.

    Raises:
        UserError: the tokenizer has no such form.
    """
    if isinstance(tokenize, HfTokenizer):
        return tokenize.tokenizer
    if isinstance(tokenize, TinyTokenizer):
        return _of_tiny(tokenize)
    inner = tokenize.inner if isinstance(tokenize, ClipTokenizer) else tokenize
    if isinstance(inner, HFTokenizer):
        return inner.tokenizer
    if isinstance(inner, SimpleTokenizer):
        merges: Any = list(inner.bpe_ranks)
        return CLIPTokenizer(inner.encoder, merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END)
    raise UserError(f"tokenizer {type(inner).__name__}: cannot be written as tokenizer.json; choose another base")


def clean_of(tokenize: Any) -> str | None:
    """How open_clip cleans texts before this tokenizer reads them (``canonicalize``, …); None = the tokenizer's own."""
    inner = tokenize.inner if isinstance(tokenize, ClipTokenizer) else tokenize
    clean = getattr(inner, "clean_fn", None) if isinstance(inner, HFTokenizer) else None
    return None if clean is None else clean.__name__.removeprefix("_clean_")


def _of_tiny(tokenize: TinyTokenizer) -> PreTrainedTokenizerFast:
    words = Tokenizer.from_str(tokenize.vocabulary.to_str())
    words.add_special_tokens([START, END])
    words.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, tokenize.start), (END, tokenize.end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=START, eos_token=END, pad_token="<pad>", model_max_length=tokenize.limit
    )
