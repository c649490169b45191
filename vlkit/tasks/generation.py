"""Writing with an adapted T5: the model over visual tokens, the loss of a written text, and beam search."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import NoRepeatNGramLogitsProcessor

from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.stacks import Memory, Past
from vlkit.tasks.visual_embedding import VisualEmbedding


def image_side(adapter: MethodOptions) -> MethodOptions:
    """The method of a writer's image tower: a joint side network (CLIP-T5 with LST) reads a frozen one."""
    return LinearOptions() if adapter.joint_side_network else adapter


def shift_right(targets: Tensor, start_id: int) -> Tensor:
    """Decoder input to predict ``targets`` [B, T]: the start token, then all targets except the last."""
    return torch.cat([torch.full_like(targets[:, :1], start_id), targets[:, :-1]], dim=1)


def token_loss(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    """Mean cross-entropy per token, without padding.

    Args:
        logits: [B, T, V].
        targets: [B, T] int64, end token included.
        pad_id: id of the padding.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad_id)


class Decodes(Protocol):
    """A model that continues texts from a memory."""

    def decode(self, memory: Memory, start: Tensor, past: Past | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each of ``start`` [B, T] int64; see
        :class:`vlkit.adapters.stacks.TextWriter`."""
        ...


class Reformulator(nn.Module):
    """An adapted T5 that reads a text and writes another one (text to text).

    Args:
        reader: the adapted encoder, a :class:`vlkit.adapters.stacks.TextReader`.
        writer: the adapted decoder, a :class:`vlkit.adapters.stacks.TextWriter`.
    """

    text: Any
    decoder: Any

    def __init__(self, reader: nn.Module, writer: nn.Module) -> None:
        super().__init__()
        self.text, self.decoder = reader, writer

    def memory(self, ids: Tensor) -> Memory:
        """What the decoder attends to, of texts [B, L] int64."""
        return self.text.read(ids)

    def decode(self, memory: Memory, start: Tensor, past: Past | None = None) -> Tensor:
        """Logits [B, T, V] float32; see :class:`Decodes`."""
        return self.decoder.write(start, memory, past).float()

    def forward(self, ids: Tensor, start: Tensor) -> Tensor:
        """Logits [B, T, V] of the written texts' tokens under teacher forcing."""
        return self.decode(self.memory(ids), start)


class ImageWriter(nn.Module):
    """CLIP-T5: an adapted T5 that reads a text with an image's visual tokens, and writes a text.

    Where the visual tokens go is the method's: with LST into the side encoder, with SHERL into the side memory of the
    last decoder block, with methods that tune the base into the memory of every decoder block.

    Args:
        image: adapted vision tower; None = blind.
        reader, writer: as in :class:`Reformulator`.
        visual: the visual embedding.
        images: I, images that a text is about; the embedding tells their cells apart.
    """

    text: Any
    decoder: Any

    def __init__(
        self, image: nn.Module | None, reader: nn.Module, writer: nn.Module, visual: VisualEmbedding, images: int = 1
    ) -> None:
        super().__init__()
        self.image, self.text, self.decoder, self.images = image, reader, writer, images
        self.visual = None if image is None else visual

    def memory(self, pixels: Tensor, ids: Tensor, owner: Tensor | None = None) -> Memory:
        """The decoder's memory.

        Args:
            pixels: [P * I, 3, H, W].
            ids: [B, L] int64, the texts.
            owner: [B] int64, the image (or pair) of each text; None: P = B, in the same order.
        """
        if self.image is None or self.visual is None:
            return self.text.read(ids)
        image = self.image(pixels)
        size = image.grid or (1, image.tokens.shape[1])
        cells = image.tokens[:, -size[0] * size[1] :].unflatten(0, (-1, self.images)).flatten(1, 2)
        tokens = self.visual(cells, self.text.base.trunk.embed_tokens.weight, size, self.images)
        return self.text.read(ids, tokens if owner is None else tokens[owner])

    def decode(self, memory: Memory, start: Tensor, past: Past | None = None) -> Tensor:
        """Logits [B, T, V] float32; see :class:`Decodes`."""
        return self.decoder.write(start, memory, past).float()

    def forward(self, pixels: Tensor, ids: Tensor, owner: Tensor | None, start: Tensor) -> Tensor:
        """Logits [B, T, V] of the texts' tokens under teacher forcing; see :meth:`memory` and :meth:`decode`."""
        return self.decode(self.memory(pixels, ids, owner), start)


@torch.no_grad()
def beam_search(
    model: Decodes,
    memory: Memory,
    start_id: int,
    end_id: int,
    pad_id: int,
    beams: int,
    max_tokens: int,
    length_power: float = 0.0,
    no_repeat: int = 0,
) -> tuple[Tensor, Tensor]:
    """The most probable texts by beam search; each step runs the new tokens only.

    Args:
        model: in eval mode.
        memory: memory of B examples.
        beams: K, beam size and number of texts returned per example; 1 = greedy.
        max_tokens: longest text, end token included.
        length_power: the final order is by log probability / length ** ``length_power``. 0 prefers short texts, 1
            compares means per token.
        no_repeat: a run of this many tokens is written once in a text; 0 = no such rule.

    Returns:
        Ids [B, K, T] int64 (without the start token, padded) and log probabilities [B, K] float32 (of the whole text,
        whatever ``length_power``), best first.
    """
    count, device = len(memory.side), memory.side.device
    wide = memory.rows(torch.arange(count, device=device).repeat_interleave(beams))
    ids = torch.full((count * beams, 1), start_id, device=device)
    score = torch.full((count, beams), -math.inf, device=device)
    score[:, 0] = 0.0  # all beams start equal: only one counts
    ended = torch.zeros(count * beams, dtype=torch.bool, device=device)
    past = Past()
    for _ in range(max_tokens):
        step = model.decode(wide, ids[:, -1:], past)[:, -1].log_softmax(-1)
        if no_repeat:
            step = NoRepeatNGramLogitsProcessor(no_repeat)(ids, step)
        # A finished text continues as padding, at no cost.
        only_pad = torch.full_like(step[0], -math.inf)
        only_pad[pad_id] = 0.0
        step = torch.where(ended[:, None], only_pad, step)
        options = (score.flatten()[:, None] + step).view(count, -1)
        score, chosen = options.topk(beams, dim=1)
        vocabulary = step.shape[1]
        source = (torch.arange(count, device=device)[:, None] * beams + chosen // vocabulary).flatten()
        token = (chosen % vocabulary).flatten()
        ids = torch.cat([ids[source], token[:, None]], dim=1)
        # The beams of an example share its memory, so their new order concerns only what they have written.
        past.reorder(source)
        ended = ended[source] | (token == end_id)
        if ended.all():
            break
    ids = ids[:, 1:].view(count, beams, -1)
    if length_power:
        lengths = (ids != pad_id).sum(-1).clamp_min(1)
        order = (score / lengths**length_power).argsort(dim=1, descending=True)
        score, ids = score.gather(1, order), ids.gather(1, order[..., None].expand_as(ids))
    return ids, score
