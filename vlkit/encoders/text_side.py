"""The encoder of a task's questions and phrases: a text base of its own, or the text tower of the image base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_text_base
from vlkit.encoders.tokenizer import CountsTokens
from vlkit.encoders.towers.text import TextEncoder

MAX_TOKENS = 64
"""Longest question in tokens; what is longer loses its end."""


@dataclass
class TextSide:
    """What reads the questions: a text base (T5, BERT), or CLIP's own text tower.

    Attributes:
        name: what the user asked for (``--text_base``): ``clip`` or a text base.
        encoder: staged tower for ids [B, L] int64.
        identity: who the towers are, by tower: ``text``, and ``decoder`` of a T5.
        base: the text base; None for ``clip``.
        clip_tokenize: CLIP's tokenizer; None for a text base.
    """

    name: str
    encoder: TextEncoder
    identity: dict[str, dict[str, Any]]
    base: TextBase | None = None
    clip_tokenize: Callable[[list[str]], Tensor] | None = None

    def tokenize(self, texts: list[str]) -> Tensor:
        """Questions -> ids [B, L] int64, no longer than the longest needs."""
        if self.base is None:
            assert self.clip_tokenize is not None  # one of the two is there
            return self.encoder.trim(self.clip_tokenize(texts))
        return self.base.tokenize(texts, self.limit)

    @property
    def limit(self) -> int:
        """Most tokens a text keeps, start and end included; see :class:`vlkit.encoders.tokenizer.CountsTokens`."""
        if self.base is None:
            return getattr(self.clip_tokenize, "limit", MAX_TOKENS)
        return min(MAX_TOKENS, self.base.tokenizer.model_max_length)

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text as a whole, start and end included."""
        if self.base is not None:
            return self.base.lengths(texts)
        return self.clip_tokenize.lengths(texts) if isinstance(self.clip_tokenize, CountsTokens) else [0] * len(texts)

    @property
    def pad_id(self) -> int:
        """Id of the tokenizer's padding (text bases only)."""
        assert self.base is not None  # a text base
        return self.base.tokenizer.pad_token_id


def text_side(name: str, base: ClipBase, text_base: TextBase | None = None) -> TextSide:
    """Load what reads the questions.

    Args:
        name: ``clip`` (the text tower of ``base``) or what :func:`vlkit.encoders.load.load_text_base` takes.
        base: the contrastive base.
        text_base: the text base of that name if it is loaded already.
    """
    if name == "clip":
        identity = {"text": {**base.identity["text"], "load": "clip"}}
        return TextSide(name, base.text, identity, clip_tokenize=base.tokenize)
    text_base = text_base or load_text_base(name)
    towers = {{"encoder": "text"}.get(tower, tower): who for tower, who in text_base.identity.items()}
    identity = {tower: {**who, "load": name} for tower, who in towers.items()}
    return TextSide(name, text_base.encoder, identity, text_base)
