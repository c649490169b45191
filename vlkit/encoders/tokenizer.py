"""Tokenizers of contrastive bases; those of open_clip are loaded when the first text comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from torch import Tensor

from vlkit.encoders.hub import hub_access, quiet
from vlkit.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a transformers tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


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
            [texts] if isinstance(texts, str) else list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]


class ClipTokenizer:
    """Texts -> ids for an open_clip base.

    It is loaded at the first call: much can be done with a base (its memory, its pictures) without reading a text, and
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
            UserError: the tokenizer's files are not at hand and cannot be fetched.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer([texts] if isinstance(texts, str) else list(texts))

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
