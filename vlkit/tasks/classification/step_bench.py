"""A classification training step on a synthetic batch, as measured by ``tasks/memory.py --task classification``.

Only the image tower takes part: the class vectors come from the text tower once, before training.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from vlkit.memory.estimate import fake_copy
from vlkit.tasks.classification.heads import LinearHeadOptions
from vlkit.tasks.classification.losses import Loss, class_loss
from vlkit.tasks.classification.model import Classifier, build_model
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

CLASSES = 100
"""Classes of the synthetic batch; the head is small beside the tower."""


class ClassifierBench(ContrastiveBench):
    """Training steps of any method on the image tower of one base, measured or predicted; see the base class."""

    def model(self, options: Any) -> Any:
        """The image tower with the method applied, and a linear head; the same random weights every time."""
        tower = copy.deepcopy(self.base.image)
        on_meta = torch.device("meta") if self.predicts else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), on_meta:
            torch.manual_seed(0)
            own = dataclasses.replace(self.base, image=tower)
            model = build_model(own, options, LinearHeadOptions(), CLASSES).train()
        return model if self.predicts else model.to(self.device)

    def _step(self, model: Any, batch_size: int) -> tuple[Any, Callable[[], Tensor]]:
        if self.predicts:
            model = fake_copy(cast(Classifier, model), self.device)
        pixels, _ = self.batch(batch_size)
        labels = torch.arange(batch_size, device=self.device) % CLASSES

        def loss_of() -> Tensor:
            with self._fabric.autocast():
                return class_loss(model(pixels), labels, Loss())

        return model, loss_of

    def inference(self, batch_size: int) -> Callable[[], Any]:
        """A function that runs the image tower in its own library's forward, without gradient."""
        tower = self.base.image.model
        tower = fake_copy(tower, self.device) if self.predicts else tower.to(self.device)
        tower.eval()
        pixels, _ = self.batch(batch_size)

        def infer() -> Any:
            with torch.no_grad(), self._fabric.autocast():
                kind = self.device.type
                given = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
                with torch.autocast(kind, **given, cache_enabled=False):  # as in training's reference
                    return tower(pixels)

        return infer
