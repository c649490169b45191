"""Writing a caption from a grid of cells: what a captioner's decoder does with visual tokens.

A cell is the sum of the token embeddings of the words for what it shows, with a row of the end of the token table as
its place (as :class:`vlkit.tasks.visual_embedding.VisualEmbedding` gives it). Cells skip the encoder, as visual tokens
do. In most examples the first decoder blocks read the prompt alone and only the last ones read the grid, because a
method that adapts a late block feeds visual tokens to it alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vlkit.drawn.captions import caption
from vlkit.drawn.graph import Scene, Thing
from vlkit.encoders.stage import stage_t5_decoder
from vlkit.encoders.staged import run_blocks
from vlkit.encoders.towers.t5 import DecoderInput, T5Decoder, attending_as

SIDE = 6
"""Cells per side, the default of the captioner."""
LATE = (0.2, 0.05, 0.05, 0.7)
"""How often the first 0, 1, 2 or 3 decoder blocks read the prompt alone."""
NOISE = 0.4
"""Largest noise of a cell, as a share of its content: a vision tower is not sure."""
CONTENT = 4.0
"""Size of a cell's content; that of its place is one (as a captioner's visual embedding starts)."""
PROMPTS = ("caption:", "describe:", "write:", "picture:", "what is here?", "a text for this:")


class Grids(NamedTuple):
    """B scenes as grids, and a caption of each."""

    prompts: Tensor
    """[B, L] int64, padded."""
    words: Tensor
    """[B, T, W] int64, the tokens of the words for each thing and, last, for the background; padded."""
    shares: Tensor
    """[B, cells, T] float32, how much of a cell shows each."""
    noise: Tensor
    """[B] float32, size of the noise."""
    targets: Tensor
    """[B, M] int64, padded with -100."""
    late: int
    """Number of decoder blocks that read the prompt alone."""
    seed: int
    """Of the noise."""

    def to(self, device: torch.device) -> Grids:
        """The same on a device."""
        moved = {name: v.to(device, non_blocking=True) for name, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**moved)


def collate_grids(
    scenes: list[tuple[Scene, np.random.Generator]], tokenizer: PreTrainedTokenizerFast, late: int | None = None
) -> Grids:
    """Scenes, with the generators that describe them, as grids; ``late`` is drawn if it is None."""
    rng = scenes[0][1]
    if late is None:
        late = int(rng.choice(len(LATE), p=LATE))
    prompts, words, shares, targets = [], [], [], []
    most = max(len(scene.things) for scene, _ in scenes) + 1
    for scene, draw in scenes:
        prompts.append(PROMPTS[int(draw.integers(len(PROMPTS)))])
        words += [_words(thing) for thing in scene.things] + [""] * (most - 1 - len(scene.things))
        words.append(scene.background.colour)
        shares.append(_shares(scene, most))
        targets.append(caption(scene, draw))
    ids = _padded(tokenizer, words, ends=False)
    target = _padded(tokenizer, targets)
    return Grids(
        _padded(tokenizer, prompts),
        ids.view(len(scenes), most, -1),
        torch.from_numpy(np.stack(shares)),
        torch.from_numpy(rng.random(len(scenes), dtype=np.float32) * NOISE),
        target.masked_fill(target == 0, -100),
        late,
        int(rng.integers(2**31)),
    )


def _padded(tokenizer: PreTrainedTokenizerFast, texts: list[str], ends: bool = True) -> Tensor:
    rows = tokenizer(texts, add_special_tokens=ends).input_ids
    return nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], True, 0)


def _words(thing: Thing) -> str:
    pattern = "" if thing.pattern == "plain" else f" {thing.pattern}"
    return f"{thing.size} {thing.colour}{pattern} {thing.kind}"


def _shares(scene: Scene, most: int) -> np.ndarray:
    """[cells, most] float32: share of a cell, row by row, that each thing's square covers, twice and at most 1; the
    last column is what no thing covers.
    """
    edges = np.arange(SIDE + 1) / SIDE
    shares = np.zeros((SIDE, SIDE, most), dtype=np.float32)
    for number, thing in enumerate(scene.things):
        half = thing.scale / 2
        across, down = (
            np.clip(np.minimum(edges[1:], at + half) - np.maximum(edges[:-1], at - half), 0, None) * SIDE
            for at in (thing.x, thing.y)
        )
        # A vision tower's token names what fills half of its cell.
        shares[:, :, number] = np.minimum(1, 2 * down[:, None] * across[None, :])
    shares[:, :, -1] = 1 - shares.max(axis=2)
    return shares.reshape(SIDE * SIDE, most)


class GridWriter:
    """Captions of grids by a T5.

    Args:
        model: a ``T5ForConditionalGeneration``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder: T5Decoder = stage_t5_decoder(model)

    def memory(self, batch: Grids) -> Tensor:
        """The grids as rows of a decoder's memory, [B, cells, D]."""
        table = self.model.shared.weight
        width = table.shape[1]
        real = (batch.words != 0).unsqueeze(-1)
        things = (self.model.shared(batch.words) * real).sum(2)  # [B, T, D]
        content = F.rms_norm(batch.shares @ things, (width,), eps=1e-6)
        rng = torch.Generator(content.device).manual_seed(batch.seed)
        noise = torch.randn(content.shape, generator=rng, device=content.device)
        content = content + batch.noise[:, None, None] * noise
        return self.model.encoder.final_layer_norm(CONTENT * content + table.flip(0)[: content.shape[1]])

    def logits(self, batch: Grids) -> Tensor:
        """Logits [B, M, V] of the captions' tokens under teacher forcing."""
        mask = batch.prompts != 0
        read = self.model.encoder(input_ids=batch.prompts, attention_mask=mask.long()).last_hidden_state
        start = F.pad(batch.targets.clamp_min(0)[:, :-1], (1, 0))
        grid = self.memory(batch)
        wide = DecoderInput(
            start, torch.cat([read, grid.to(read.dtype)], 1), F.pad(mask, (0, grid.shape[1]), value=True)
        )
        stream = self.decoder.embed(DecoderInput(start, read, mask) if batch.late else wide)
        if batch.late:
            stream = run_blocks(self.decoder, stream, 0, batch.late)
            stream = stream.replace(extras={"arguments": attending_as(stream, self.decoder.embed(wide))})
        stream = run_blocks(self.decoder, stream, batch.late, self.decoder.depth)
        return self.decoder.logits(self.decoder.tokens(stream))
