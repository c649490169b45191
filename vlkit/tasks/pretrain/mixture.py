"""The mixture that the T5 base learns from: denoising, supervised text tasks, agreement, and captions of grids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from vlkit.drawn.agreement import marked
from vlkit.drawn.captions import caption
from vlkit.drawn.dice import Dice
from vlkit.drawn.samples import TRAIN, VALIDATION, scene_and_rng
from vlkit.drawn.statements import TASKS, task_of
from vlkit.tasks.pretrain.agreement import MarkedTexts, Marker, collate_marked, token_losses
from vlkit.tasks.pretrain.denoising import Denoising, padded
from vlkit.tasks.pretrain.grids import Grids, GridWriter, collate_grids

Texts = tuple[Tensor, Tensor, Tensor]
"""Sources [B, L] int64, their mask, and targets [B, M] int64 with -100 as padding."""


@dataclass(frozen=True)
class Shares:
    """How a batch is made up.

    Attributes:
        supervised: share of the samples that are supervised text tasks (:mod:`vlkit.drawn.statements`).
        agreement: share that are pairs of texts of which the encoder marks the statements
            (:mod:`vlkit.drawn.agreement`).
        grids: share that are captions of grids.
        prefixes, rewrites: see :class:`vlkit.tasks.pretrain.denoising.Denoising`, of the samples that are left.
    """

    supervised: float = 0.0
    grids: float = 0.0
    prefixes: float = 0.0
    rewrites: float = 0.0
    agreement: float = 0.0


class Batch(NamedTuple):
    """The samples of one step; None = none of that sort."""

    texts: Texts | None
    grids: Grids | None
    marked: MarkedTexts | None = None


class Mixture(Dataset[Batch]):
    """Batches; batch n is a pure function of n and the arguments.

    Args:
        tokenizer: of the T5.
        shares: how a batch is made up.
        seed: of the world. split: part of the seed.
        size: samples a batch.
        count: how many batches there are.
        first: number of the first batch.
        task: only this supervised task; default: all.
        late: see :func:`vlkit.tasks.pretrain.grids.collate_grids`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        shares: Shares,
        seed: int,
        split: int,
        size: int,
        count: int,
        first: int = 0,
        task: str | None = None,
        late: int | None = None,
    ) -> None:
        self.tokenizer, self.seed, self.split, self.size = tokenizer, seed, split, size
        self.count, self.first, self.task, self.late = count, first, task, late
        self.denoising = Denoising(tokenizer, shares.prefixes, shares.rewrites)
        # Rounding the sums keeps the parts together at no more than a batch.
        sums = itertools.accumulate((0.0, shares.supervised, shares.agreement, shares.grids))
        ends = [round(size * part) for part in sums]
        self.ends = [size - ends[-1] + end for end in ends]

    def __len__(self) -> int:
        return self.count - self.first

    def __getitem__(self, index: int) -> Batch:
        """Batch ``first + index``."""
        start = (self.first + index) * self.size
        # Scenes are numbered like those of a run without tasks: the denoised ones come first.
        scenes = [scene_and_rng(self.seed, self.split, start + i) for i in range(self.size)]
        told, supervised, compared, drawn = (scenes[i:j] for i, j in itertools.pairwise((0, *self.ends)))
        texts = [(caption(scene, rng), caption(scene, rng)) for scene, rng in told]
        pairs = self.denoising.pairs(texts) if texts else []
        tasks = [task_of(scene, Dice(rng), self.task) for scene, rng in supervised]
        if tasks:
            ids = self.tokenizer([text for task in tasks for text in (task.source, task.target)]).input_ids
            pairs += list(zip(ids[::2], ids[1::2], strict=True))
        grids = collate_grids(drawn, self.tokenizer, self.late) if drawn else None
        marks = [marked(scene, Dice(rng)) for scene, rng in compared]
        return Batch(padded(pairs) if pairs else None, grids, collate_marked(marks, self.tokenizer) if marks else None)


def batches(dataset: Mixture, workers: int, device: torch.device) -> DataLoader:
    """Batches in order, made by ``workers`` processes (0 = by this process)."""
    ahead = 4 if workers else None
    pin = device.type == "cuda"
    return DataLoader(dataset, None, num_workers=workers, prefetch_factor=ahead, pin_memory=pin)


class Losses:
    """The loss of a batch: cross-entropy per token, averaged within each sample first, so a label counts as much as a
    sentence.

    Args:
        model: a ``T5ForConditionalGeneration``.
        tokenizer: of the T5.
        device: where it is.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        self.model, self.device = model, device
        self.writer, self.marker = GridWriter(model), Marker(model, tokenizer)

    def __call__(self, batch: Batch) -> Tensor:
        found = [per_sample(*part) for part in self.parts(batch)]
        if batch.marked is not None:
            found.append(self.marker.losses(batch.marked.to(self.device)))
        return torch.cat(found).mean()

    def parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(logits [B, M, V], targets [B, M]) of the texts and of the grids, where there are any."""
        found = []
        if batch.texts is not None:
            source, mask, target = (tensor.to(self.device, non_blocking=True) for tensor in batch.texts)
            found.append((self.model(input_ids=source, attention_mask=mask, labels=target).logits, target))
        if batch.grids is not None:
            grids = batch.grids.to(self.device)
            found.append((self.writer.logits(grids), grids.targets))
        return found


def per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each sample's tokens, [B] float32."""
    return token_losses(logits, target).sum(1) / (target >= 0).sum(1)


OBJECTIVES: dict[str, tuple[Shares, str | None, int | None]] = {
    "denoising": (Shares(), None, None),
    "prefix": (Shares(prefixes=1.0), None, None),
    "rewriting": (Shares(rewrites=1.0), None, None),
    "grid": (Shares(grids=1.0), None, 0),
    "grid_late": (Shares(grids=1.0), None, 3),
    **{name: (Shares(supervised=1.0), name, None) for name in TASKS},
}
"""What is measured on held-out scenes."""


class Measure:
    """Perplexity of every objective per token, and how many supervised targets are written without a mistake.

    Args:
        losses: of the model.
        tokenizer: of the T5.
        seed: of the world.
        count: held-out scenes of each objective.
    """

    def __init__(self, losses: Losses, tokenizer: PreTrainedTokenizerFast, seed: int, count: int) -> None:
        self.losses, size = losses, min(count, 200)

        def held_out(shares: Shares, task: str | None = None, late: int | None = None) -> list[Batch]:
            mixture = Mixture(tokenizer, shares, seed, VALIDATION, size, -(-count // size), 0, task, late)
            return [mixture[i] for i in range(len(mixture))]

        self.batches = {name: held_out(*objective) for name, objective in OBJECTIVES.items()}
        self.marked = [batch.marked for batch in held_out(Shares(agreement=1.0)) if batch.marked]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``*_perplexity``, and ``*_accuracy`` in percent: of supervised tasks (exact, greedy), of pairs of texts in
        which the encoder marks all statements right, and of its verdicts on pairs."""
        marks = [self.losses.marker.right(texts.to(self.losses.device)) for texts in self.marked]
        names = ("agreement_accuracy", "verdict_accuracy")
        found = {
            name: 100 * torch.cat(right).float().mean().item()
            for name, right in zip(names, zip(*marks, strict=True), strict=True)
        }
        for name, batches in self.batches.items():
            loss = tokens = written = samples = 0.0
            for batch in batches:
                ((logits, target),) = self.losses.parts(batch)
                real = target >= 0
                loss += token_losses(logits, target).sum().item()
                tokens += real.sum().item()
                # Where every token is the most probable one after the right ones, greedy search writes the target.
                written += ((logits.argmax(-1) == target) | ~real).all(1).sum().item()
                samples += len(target)
            found[f"{name}_perplexity"] = float(torch.tensor(loss / tokens).exp())
            if name in TASKS:
                found[f"{name}_accuracy"] = 100 * written / samples
        return found


def training(
    tokenizer: PreTrainedTokenizerFast, shares: Shares, seed: int, size: int, steps: int, first: int
) -> Mixture:
    """The batches of training from number ``first`` on."""
    return Mixture(tokenizer, shares, seed, TRAIN, size, steps, first)
