"""The text encoder for questions and phrases: a separate text base, or the text tower of the image base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_text_base
from vlkit.encoders.stored_weights import named_format
from vlkit.encoders.tokenizer import CountsTokens
from vlkit.encoders.towers.text import TextEncoder

MAX_TOKENS = 64
"""Maximum number of tokens per question; longer questions are truncated."""


@dataclass
class TextSide:
    """The text encoder of a task: a text base (T5, BERT), or CLIP's own text tower.

    Attributes:
        name: the user's value of ``--text_base``: ``clip`` or a text base.
        encoder: staged tower for ids [B, L] int64.
        identity: identity per tower: ``text``, and ``decoder`` for a T5.
        base: the text base; None for ``clip``.
        clip_tokenize: CLIP's tokenizer; None for a text base.
        prompt: words that are read before every text, such as ``vqa:``.
    """

    name: str
    encoder: TextEncoder
    identity: dict[str, dict[str, Any]]
    base: TextBase | None = None
    clip_tokenize: Callable[[list[str]], Tensor] | None = None
    prompt: str = ""

    def tokenize(self, texts: list[str]) -> Tensor:
        """Questions -> ids [B, L] int64, padded to the longest question."""
        texts = self._prompted(texts)
        if self.base is None:
            assert self.clip_tokenize is not None  # one of the two is there
            return self.encoder.trim(self.clip_tokenize(texts))
        return self.base.tokenize(texts, self.limit)

    @property
    def limit(self) -> int:
        """Maximum number of tokens, including start and end; see :class:`vlkit.encoders.tokenizer.CountsTokens`."""
        if self.base is None:
            return getattr(self.clip_tokenize, "limit", MAX_TOKENS)
        return min(MAX_TOKENS, self.base.tokenizer.model_max_length)

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each untruncated text, including start and end."""
        texts = self._prompted(texts)
        if self.base is not None:
            return self.base.lengths(texts)
        return self.clip_tokenize.lengths(texts) if isinstance(self.clip_tokenize, CountsTokens) else [0] * len(texts)

    def _prompted(self, texts: list[str]) -> list[str]:
        return [f"{self.prompt} {text}" for text in texts] if self.prompt else texts

    @property
    def pad_id(self) -> int:
        """Padding id of the tokenizer (text bases only)."""
        assert self.base is not None  # a text base
        return self.base.tokenizer.pad_token_id


def text_side(name: str, base: ClipBase, text_base: TextBase | None = None, prompt: str = "") -> TextSide:
    """Load the text encoder of a task.

    Args:
        name: ``clip`` (the text tower of ``base``) or a name for :func:`vlkit.encoders.load.load_text_base`.
        base: the contrastive base.
        text_base: the text base of that name, if it is already loaded.
        prompt: see :class:`TextSide`.
    """
    if named_format(name)[0] == "clip":  # stored as the rest of the base
        identity = {"text": {**base.identity["text"], "load": "clip"}}
        return TextSide("clip", base.text, identity, clip_tokenize=base.tokenize, prompt=prompt)
    text_base = text_base or load_text_base(name)
    towers = {{"encoder": "text"}.get(tower, tower): who for tower, who in text_base.identity.items()}
    identity = {tower: {**who, "load": name} for tower, who in towers.items()}
    return TextSide(name, text_base.encoder, identity, text_base, prompt=prompt)
