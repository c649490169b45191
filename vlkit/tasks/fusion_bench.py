"""A training step of a task that fuses image and text, on a synthetic batch: the part that those tasks share."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_text_base
from vlkit.encoders.stored_weights import named_format
from vlkit.encoders.text_side import TextSide
from vlkit.memory.estimate import fake_copy
from vlkit.tasks.retrieval.step_bench import ContrastiveBench


class FusionBench(ContrastiveBench):
    """Training steps of any method on two towers and what fuses them, measured or predicted; see the base class.

    A step has one text per image, of full length: the memory is an upper bound for shorter texts.

    Args:
        base: name of the contrastive base.
        predicts: compute nothing: tensors have shapes but no values.
        text_base: ``clip`` or the name of a text base.
        options: further arguments of the base class.
    """

    def __init__(self, base: str, predicts: bool, text_base: str = "clip", **options: Any) -> None:
        super().__init__(base, predicts, **options)
        self.text_base: TextBase | None = None
        if named_format(text_base)[0] != "clip":
            loaded = load_text_base(text_base)
            stacks: Any = nn.ModuleList(stack for stack in (loaded.encoder, loaded.decoder) if stack is not None)
            if predicts:
                stacks = fake_copy(stacks, torch.device("meta"))  # encoder and decoder go on sharing their embeddings
            encoder, decoder = stacks[0], stacks[1] if len(stacks) > 1 else None
            self.text_base = dataclasses.replace(loaded, encoder=encoder, decoder=decoder)
            self.text_length = TextSide(text_base, encoder, {}, self.text_base).limit

    def build(self, base: ClipBase, text: TextSide, options: Any) -> nn.Module:
        """The task's model on copies of the towers."""
        raise NotImplementedError

    def loss(self, model: nn.Module, pixels: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
        """The task's loss on made-up targets, for images [B, 3, H, W] and one text each."""
        raise NotImplementedError

    def model(self, options: Any) -> Any:
        """The task's model with the method applied; new parameters have the same random weights every time."""
        image, clip_text = copy.deepcopy(self.base.image), copy.deepcopy(self.base.text)
        base = dataclasses.replace(self.base, image=image, text=clip_text)
        if self.text_base is None:
            text = TextSide("clip", clip_text, {}, clip_tokenize=base.tokenize)
        else:
            encoder, decoder = copy.deepcopy((self.text_base.encoder, self.text_base.decoder))
            own = dataclasses.replace(self.text_base, encoder=encoder, decoder=decoder)
            text = TextSide(own.name, encoder, {}, own)
        on_meta = torch.device("meta") if self.predicts else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), on_meta:
            torch.manual_seed(0)
            model = self.build(base, text, options).train()
        return model if self.predicts else model.to(self.device)

    def batch(self, batch_size: int, text_length: int | None = None) -> tuple[Tensor, Tensor]:
        """The synthetic batch: images [B, 3, H, W] and token ids [B, L]; L defaults to the steps' length."""
        pixels, ids = super().batch(batch_size, text_length)
        if self.text_base is None or text_length is not None:  # the reference reads with the contrastive base
            return pixels, ids
        generator = torch.Generator().manual_seed(0)
        return pixels, torch.randint(3, 6, ids.shape, generator=generator).to(self.device)

    def _step(self, model: Any, batch_size: int) -> tuple[Any, Callable[[], Tensor]]:
        if self.predicts:
            model = fake_copy(model, self.device)
        pixels, ids = self.batch(batch_size)
        owner = torch.arange(batch_size, device=self.device)

        def loss_of() -> Tensor:
            with self._fabric.autocast():
                return self.loss(model, pixels, ids, owner)

        return model, loss_of
