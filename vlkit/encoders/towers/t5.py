"""The decoder of T5, mT5 and UMT5 as a staged encoder; :mod:`vlkit.encoders.towers.hf_text` stages their encoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.encoders.staged import Stream
from vlkit.encoders.towers.hf_text import HfText, start_trunk
from vlkit.encoders.towers.text import up_to


@dataclass(frozen=True)
class DecoderInput:
    """The input of a T5 decoder.

    Attributes:
        ids: [B, L] int64, starts with the decoder's start token.
        memory: [B, M, D] encoder output after its final norm.
        memory_mask: [B, M] bool, True = real token; None = all real.
        cache: keys and values of earlier tokens, a cache of transformers that each block extends; None = no cache.
    """

    ids: Tensor
    memory: Tensor
    memory_mask: Tensor | None = None
    cache: Any = None


class T5Decoder(HfText):
    """The decoder of T5, mT5 or UMT5; its input is a :class:`DecoderInput`.

    Args:
        stack: ``T5ForConditionalGeneration.decoder``.
        lm_head: ``T5ForConditionalGeneration.lm_head``, for :meth:`logits`.
    """

    causal = True

    def __init__(self, stack: Any, lm_head: nn.Module) -> None:
        super().__init__(stack, stack, stack.config.d_model, summary=None)
        self.lm_head = lm_head
        # T5 1.0 scales its states before the output layer, which shares the embeddings; T5 1.1, Flan and mT5 do not.
        scaled = getattr(stack.config, "scale_decoder_outputs", False)
        self.output_scale = stack.config.d_model**-0.5 if scaled else 1.0

    @property
    def cache_name(self) -> str:
        """What this version of transformers calls the cache."""
        return "cache" if "cache" in inspect.signature(self.trunk.forward).parameters else "past_key_values"

    def embed(self, x: DecoderInput) -> Stream:
        """Decoder ids and encoder memory -> stream with hidden [B, L, D]; summary = the last real token."""
        memory_mask = None if x.memory_mask is None else x.memory_mask.long()
        hidden, arguments = start_trunk(
            self.trunk,
            input_ids=x.ids,
            encoder_hidden_states=x.memory,
            encoder_attention_mask=memory_mask,
            **({"use_cache": False} if x.cache is None else {self.cache_name: x.cache}),
        )
        mask = self.real(x.ids)
        return Stream(hidden, mask, mask.long().sum(dim=1) - 1, {"arguments": arguments})

    def pool(self, stream: Stream) -> Tensor:
        """[B, D]: state of the last real token after the final norm (it predicts the next token)."""
        rows = torch.arange(len(stream.hidden), device=stream.hidden.device)
        return self.tokens(stream)[rows, stream.summary]

    def logits(self, normed: Tensor) -> Tensor:
        """Vocabulary logits [..., V] for states [..., D] after a final norm (that of :meth:`tokens` or another)."""
        return self.lm_head(normed * self.output_scale)

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool: tokens up to the last one that is not padding (the start token may have the padding id)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        last = torch.where(ids != self.pad_id, positions, 0).amax(dim=1)
        return up_to(last, ids.shape[1])


def with_memory(stream: Stream, memory: Tensor) -> Stream:
    """A decoder stream whose next blocks attend to another encoder memory (SHERL's side memory, same padding).

    Args:
        stream: from :class:`T5Decoder`.
        memory: [B, M, D], same shape as the decoder's original memory.

    Raises:
        ValueError: ``memory`` has another shape, so the padding mask does not fit.
    """
    arguments = stream.extras["arguments"]
    expected = arguments["encoder_hidden_states"].shape
    if memory.shape != expected:
        raise ValueError(f"memory is {tuple(memory.shape)}, the decoder was given {tuple(expected)}")
    return stream.replace(extras={"arguments": {**arguments, "encoder_hidden_states": memory}})


def attending_as(stream: Stream, other: Stream) -> dict[str, Any]:
    """The arguments of a decoder stream's next blocks, with the encoder memory and its mask taken from ``other``."""
    arguments, new = stream.extras["arguments"], other.extras["arguments"]
    return {**arguments, **{name: new[name] for name in new if name.startswith("encoder_")}}
