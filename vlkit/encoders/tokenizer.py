"""Tokenizers of contrastive bases (open_clip's are loaded on first use), and a count of truncated texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import open_clip
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from torch import Tensor

from vlkit.encoders.hub import hub_access, quiet
from vlkit.errors import UserError

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a transformers tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


@runtime_checkable
class CountsTokens(Protocol):
    """A tokenizer that can count the tokens of a text before truncation."""

    @property
    def limit(self) -> int:
        """Maximum number of tokens, including start and end."""
        ...

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each untruncated text, including start and end."""
        ...


@dataclass
class Shorter:
    """A :class:`CountsTokens` with a smaller limit than the tokenizer's own."""

    lengths: Callable[[list[str]], list[int]]
    limit: int


class Cut(NamedTuple):
    """``count`` of ``total`` texts are longer than ``limit`` tokens and are truncated.

    ``sampled``: the number of texts that the count is estimated from; 0 = all were looked at.
    """

    count: int
    total: int
    limit: int
    sampled: int = 0


MOST_COUNTED = 20_000
"""Texts that are tokenized to count the truncated ones; the half million of COCO would take half a minute."""


def cut_texts(tokenizer: Any, texts: Sequence[str]) -> Cut:
    """Count the texts that a tokenizer truncates.

    A token is at least one byte, so only texts with more bytes than the limit are tokenized: cheap for captions. Of
    many such texts :data:`MOST_COUNTED` are, evenly spread.

    Args:
        tokenizer: a :class:`CountsTokens`; for any other tokenizer no text counts as truncated.
        texts: the texts to tokenize.
    """
    if not isinstance(tokenizer, CountsTokens):
        return Cut(0, len(texts), 0)
    limit = tokenizer.limit
    long = [text for text in texts if len(text) > limit - 3 or len(text.encode("utf-8", "replace")) > limit - 3]
    seen = long
    if len(long) > MOST_COUNTED:
        seen = [long[place] for place in np.linspace(0, len(long) - 1, MOST_COUNTED).round().astype(int)]
    count = sum(length > limit for length in tokenizer.lengths(seen)) if seen else 0
    if len(seen) == len(long):
        return Cut(count, len(texts), limit)
    return Cut(round(count * len(long) / len(seen)), len(texts), limit, len(seen))


def warn_of_cut_texts(tokenizer: Any, texts: Sequence[str], what: str) -> None:
    """Log once how many texts are truncated and at how many tokens; log nothing if none is.

    Args:
        tokenizer: the tokenizer.
        texts: all texts.
        what: plural noun for the texts, such as ``training captions``.
    """
    cut = cut_texts(tokenizer, texts)
    if cut.count:
        are = "is" if cut.count == 1 else "are"
        about, sample = ("about ", f" (estimated from {cut.sampled:,})") if cut.sampled else ("", "")
        counts = f"{about}{cut.count:,} of {cut.total:,} {what}{sample} {are} cut at {cut.limit} tokens"
        _warn_once(f"{counts}: what comes later is not read")


@lru_cache(maxsize=1024)  # bounded, because a server runs for weeks
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def readable(texts: list[str]) -> list[str]:
    """Replace lone surrogates (halves of emojis, undecodable bytes of a command line) by ``U+FFFD``.

    They are not characters, and tokenizers raise an error on texts that contain them.
    """
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


class HfTokenizer:
    """Texts -> ids of a transformers tokenizer, with a fixed length as in open_clip.

    Args:
        tokenizer: a transformers tokenizer.
        context_length: number of ids per text; longer texts are truncated.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = min(context_length, tokenizer.model_max_length)

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Texts -> ids [B, context_length] int64."""
        return self.tokenizer(
            readable([texts] if isinstance(texts, str) else list(texts)),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]

    @property
    def limit(self) -> int:
        """Maximum number of tokens; see :class:`CountsTokens`."""
        return self.context_length

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each untruncated text; see :class:`CountsTokens`."""
        return [len(ids) for ids in self.tokenizer(readable(texts), truncation=False, verbose=False)["input_ids"]]


class ClipTokenizer:
    """Texts -> ids for an open_clip base.

    It is loaded on the first call: many uses of a base (memory, image features) need no text, and some tokenizers have
    to be downloaded.

    Args:
        name: the base, as open_clip names it.
        text_cfg: open_clip's text configuration.
        folder: folder with the files of a transformers tokenizer, instead of the hub.

    Attributes:
        context_length: number of ids per text; None = open_clip's.
    """

    context_length: int | None = None

    def __init__(self, name: str, text_cfg: dict[str, Any], folder: str | Path | None = None) -> None:
        self.name = name
        self._text_cfg = text_cfg
        self._folder = folder
        self._tokenizer: Any = None

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Texts -> ids [B, context length] int64.

        Raises:
            UserError: the tokenizer's files are missing and cannot be fetched.
        """
        return self.inner(readable([texts] if isinstance(texts, str) else list(texts)))

    @property
    def inner(self) -> Any:
        """open_clip's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self._load()
        if self.context_length is not None:
            self._tokenizer.context_length = self.context_length
        return self._tokenizer

    @property
    def limit(self) -> int:
        """Context length of the base in tokens."""
        return self.inner.context_length

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each untruncated text, including start and end; see :class:`CountsTokens`."""
        tokenizer = self.inner
        if hasattr(tokenizer, "encode"):  # CLIP's own byte-pair encoding
            return [len(tokenizer.encode(text)) + 2 for text in texts]
        texts = [tokenizer.clean_fn(text) for text in texts] if hasattr(tokenizer, "clean_fn") else list(texts)
        clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"  # this mode adds start, end and class token
        ids = tokenizer.tokenizer(texts, add_special_tokens=not clips, truncation=False, verbose=False)["input_ids"]
        return [len(row) + (3 if clips else 0) for row in ids]

    def _needs_hub(self) -> bool:
        return "hf_tokenizer_name" in self._text_cfg or self.name.startswith("hf-hub:")

    def _load(self) -> Any:
        try:
            if self._folder is None:
                with hub_access() if self._needs_hub() else quiet():
                    return open_clip.get_tokenizer(self.name)
            return HFTokenizer(
                str(self._folder),
                context_length=self._text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=self._text_cfg.get("tokenizer_mode"),
                **self._text_cfg.get("tokenizer_kwargs", {}),
            )
        except (OSError, ValueError) as error:
            source = self._folder or self._text_cfg.get("hf_tokenizer_name", self.name)
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"base {self.name}: its tokenizer {str(source)!r} cannot be loaded ({reason}); without network access "
                "put the tokenizer files into the folder of the weights file (ARCH:FILE)"
            ) from error
