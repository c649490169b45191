"""Tokenizers of contrastive bases, those of open_clip loaded when the first text comes; and a count of cut texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
    """A tokenizer that knows how long a text is before it cuts it."""

    @property
    def limit(self) -> int:
        """Most tokens a text keeps, start and end included."""
        ...

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text as a whole, start and end included."""
        ...


@dataclass
class Shorter:
    """A tokenizer that keeps fewer tokens than it could; a :class:`CountsTokens`."""

    lengths: Callable[[list[str]], list[int]]
    limit: int


class Cut(NamedTuple):
    """``count`` of ``total`` texts are longer than ``limit`` tokens and lose their end."""

    count: int
    total: int
    limit: int


def cut_texts(tokenizer: Any, texts: Sequence[str]) -> Cut:
    """Count the texts that a tokenizer cuts.

    A token is at least one byte, so only texts of more bytes than the limit are tokenized: cheap for captions.

    Args:
        tokenizer: a :class:`CountsTokens`; of another one nothing is known, and no text counts as cut.
        texts: as they are given to it.
    """
    if not isinstance(tokenizer, CountsTokens):
        return Cut(0, len(texts), 0)
    limit = tokenizer.limit
    long = [text for text in texts if len(text) > limit - 3 or len(text.encode("utf-8", "replace")) > limit - 3]
    return Cut(sum(length > limit for length in tokenizer.lengths(long)) if long else 0, len(texts), limit)


def warn_of_cut_texts(tokenizer: Any, texts: Sequence[str], what: str) -> None:
    """Log once how many texts are cut and at how many tokens; nothing if none is.

    Args:
        tokenizer: what reads them.
        texts: all of them.
        what: name of many of them: ``training captions``.
    """
    cut = cut_texts(tokenizer, texts)
    if cut.count:
        are = "is" if cut.count == 1 else "are"
        counts = f"{cut.count:,} of {cut.total:,} {what} {are} cut at {cut.limit} tokens"
        _warn_once(f"{counts}: what comes later is not read")


@lru_cache(maxsize=1024)  # an evaluation every few epochs, a server for weeks
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def readable(texts: list[str]) -> list[str]:
    """The texts with ``U+FFFD`` in the place of lone surrogates: halves of emojis, bytes of a command line.

    They are no characters, and tokenizers refuse a text that holds one as if it were no text at all.
    """
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


class HfTokenizer:
    """Texts -> ids of a transformers tokenizer, all of one length as those of open_clip are.

    Args:
        tokenizer: of transformers.
        context_length: ids of every text; longer texts lose their end.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self.context_length = min(context_length, tokenizer.model_max_length)

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Texts -> ids [B, context_length] int64."""
        return self._tokenizer(
            readable([texts] if isinstance(texts, str) else list(texts)),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]

    @property
    def limit(self) -> int:
        """Most tokens a text keeps; see :class:`CountsTokens`."""
        return self.context_length

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text as a whole; see :class:`CountsTokens`."""
        return [len(ids) for ids in self._tokenizer(readable(texts), truncation=False, verbose=False)["input_ids"]]


class ClipTokenizer:
    """Texts -> ids for an open_clip base.

    It is loaded at the first call: much can be done with a base (its memory, its images) without reading a text, and
    some tokenizers have to come from the hub.

    Args:
        name: the base, as open_clip names it.
        text_cfg: open_clip's text configuration.
        folder: folder with the files of a transformers tokenizer, instead of the hub.
    """

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
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer(readable([texts] if isinstance(texts, str) else list(texts)))

    @property
    def limit(self) -> int:
        """Context length of the base in tokens."""
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer.context_length

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text as a whole, start and end included; see :class:`CountsTokens`."""
        if self._tokenizer is None:
            self._tokenizer = self._load()
        tokenizer = self._tokenizer
        if hasattr(tokenizer, "encode"):  # CLIP's own byte-pair encoding
            return [len(tokenizer.encode(text)) + 2 for text in texts]
        texts = [tokenizer.clean_fn(text) for text in texts] if hasattr(tokenizer, "clean_fn") else list(texts)
        clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"  # it adds start, end and class token by itself
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
                "put the tokenizer's files beside the weights file (ARCH:FILE)"
            ) from error
