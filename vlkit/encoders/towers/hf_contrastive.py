"""The towers of transformers' contrastive models (CLIP, SigLIP) as staged encoders.

Each tower owns the library's module that a state dict of this tower loads into: ``CLIPVisionModelWithProjection`` and
``CLIPTextModelWithProjection`` for CLIP, ``SiglipVisionModel`` and ``SiglipTextModel`` for SigLIP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlkit.encoders.blocks.capture import inputs_of, watch
from vlkit.encoders.staged import StagedEncoder, Stream, call_block
from vlkit.encoders.towers.text import TextEncoder, up_to

# transformers wrote this id into every CLIP configuration at first; it then pools at the largest id, as OpenAI does.
LEGACY_EOS = 2


class _Blocks(StagedEncoder):
    """What both towers have in common: ``tower.encoder.layers`` are the blocks.

    Args:
        model: the module that owns the weights.
        tower: the part of ``model`` with the blocks.
        out_dim: width of the pooled embedding.
    """

    def __init__(self, model: nn.Module, tower: Any, out_dim: int) -> None:
        super().__init__()
        self.model = model
        watch(tower.encoder.layers[0])
        self.depth = len(tower.encoder.layers)
        self.token_dim = tower.config.hidden_size
        self.widths = (self.token_dim,) * (self.depth + 1)
        self.stages = tuple(range(self.depth + 1))
        self.out_dim = out_dim

    @property
    def tower(self) -> Any:
        """The part of the model that holds the blocks."""
        return self.model

    def block(self, i: int, stream: Stream) -> Stream:
        """Run block ``i``; [B, L, D] in and out."""
        output = self.runs(call_block)(self.transformer_block(i), stream.hidden, stream.extras["arguments"])
        return stream.replace(hidden=output if isinstance(output, Tensor) else output[0])

    def transformer_block(self, i: int) -> nn.Module:
        """transformers' block ``i``."""
        return self.tower.encoder.layers[i]

    def _start(self, **inputs: Any) -> tuple[Tensor, dict[str, Any]]:
        """The input [B, L, D] of block 0, and the other arguments that the library passes to its blocks."""
        arguments = inputs_of(self.tower.encoder.layers[0], lambda: self.tower(**inputs))
        return arguments.pop("hidden_states"), arguments


class _Vision(_Blocks):
    def embed(self, x: Tensor) -> Stream:
        """Images [B, 3, H, W] -> stream with hidden [B, L, D]."""
        hidden, arguments = self._start(pixel_values=x)
        return Stream(hidden, extras={"arguments": arguments})

    def tokens(self, stream: Stream) -> Tensor:
        """[B, L, D]: every token after the norm that precedes pooling."""
        return self.tower.post_layernorm(stream.hidden)

    def grid(self, stream: Stream) -> tuple[int, int]:
        """Rows and columns of the patches, which follow the class token if there is one."""
        side = self.tower.config.image_size // self.tower.config.patch_size
        return side, side


class HfClipVision(_Vision):
    """``CLIPVisionModelWithProjection``: [B, 3, H, W] -> tokens [B, 1 + patches, D], class token first."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.vision_model, model.visual_projection.out_features)

    @property
    def tower(self) -> Any:
        """``CLIPVisionModel`` without projection."""
        return self.model.vision_model

    def embed(self, x: Tensor) -> Stream:
        """Images [B, 3, H, W] -> stream with hidden [B, 1 + patches, D]."""
        return super().embed(x).replace(summary=torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))

    def pool(self, stream: Stream) -> Tensor:
        """State of the class token, normed and projected, [B, out_dim]."""
        return self.model.visual_projection(self.tower.post_layernorm(stream.hidden[:, 0]))

    @property
    def pools_one_token(self) -> bool:
        """True: the class token."""
        return True

    @property
    def joint_dim(self) -> int:
        """Width of the joint space."""
        return self.out_dim

    def project(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, joint_dim], as the class token is projected."""
        return self.model.visual_projection(tokens)


class SiglipVision(_Vision):
    """``SiglipVisionModel``: [B, 3, H, W] -> tokens [B, patches, D], pooled by an attention head."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, model, model.config.hidden_size)

    def pool(self, stream: Stream) -> Tensor:
        """Output of the attention pooling head, [B, D]."""
        return self.model.head(self.tokens(stream))


class _Text(_Blocks, TextEncoder):
    """What both text towers have in common: the token at ``summary`` is pooled, after the final norm and a projection.

    Args:
        model: the module that owns the weights.
        tower: the part of ``model`` with the blocks.
        projection: the part of ``model`` that leads to the joint space.
    """

    def __init__(self, model: nn.Module, tower: Any, projection: Any) -> None:
        super().__init__(model, tower, projection.out_features)
        # Its name in the model, which may be copied or given other weights; registered here it would be saved twice.
        self._projection = next(name for name, module in model.named_modules() if module is projection)

    def pool(self, stream: Stream) -> Tensor:
        """State at the summary token, normed and projected, [B, out_dim]."""
        rows = torch.arange(stream.hidden.shape[0], device=stream.hidden.device)
        return self.project(self.tower.final_layer_norm(stream.hidden[rows, stream.summary]))

    def tokens(self, stream: Stream) -> Tensor:
        """[B, L, D] after the final norm."""
        return self.tower.final_layer_norm(stream.hidden)

    @property
    def joint_dim(self) -> int:
        """Width of the joint space."""
        return self.out_dim

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., joint_dim], as the summary token is projected."""
        return self.model.get_submodule(self._projection)(tokens)


class HfClipText(_Text):
    """``CLIPTextModelWithProjection``: ids [B, L] int64 -> tokens [B, L, D], pooled at the end of text."""

    causal = True
    trimmable = True  # no token sees a later one

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.text_model, model.text_projection)

    @property
    def tower(self) -> Any:
        """``CLIPTextModel`` without projection."""
        return self.model.text_model

    def embed(self, x: Tensor) -> Stream:
        """Ids [B, L] -> stream with hidden [B, L, D], its mask of real tokens and the position of the end of text."""
        hidden, arguments = self._start(input_ids=x)
        summary = self._end(x)
        return Stream(hidden, up_to(summary, x.shape[1]), summary, {"arguments": arguments})

    @property
    def pools_one_token(self) -> bool:
        """True: the end of text, which sees exactly the tokens of the mask."""
        return True

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool: the tokens up to the end of text."""
        return up_to(self._end(ids), ids.shape[1])

    def _end(self, ids: Tensor) -> Tensor:
        """[B] int64: position of the end of text, as the library finds it."""
        end = self.tower.eos_token_id
        return (ids if end == LEGACY_EOS else (ids == end).int()).argmax(dim=-1)


class SiglipText(_Text):
    """``SiglipTextModel``: ids [B, L] int64 -> tokens [B, L, D], pooled at the last position.

    It was trained on texts padded to one length and attends to the padding.

    Args:
        model: the tower.
        pad_id: padding id of the tokenizer. Only :meth:`real` uses it.
    """

    causal = False
    trimmable = False  # the last position is pooled, even if it is padding

    def __init__(self, model: Any, pad_id: int) -> None:
        super().__init__(model, model, model.head)
        self.pad_id = pad_id

    def embed(self, x: Tensor) -> Stream:
        """Ids [B, L] -> stream with hidden [B, L, D], its mask of real tokens and the last position."""
        hidden, arguments = self._start(input_ids=x)
        return Stream(hidden, self.real(x), torch.full_like(x[:, 0], x.shape[1] - 1), {"arguments": arguments})

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool: every token but padding, and the last position, which is pooled."""
        mask = ids != self.pad_id
        mask[:, -1] = True
        return mask
