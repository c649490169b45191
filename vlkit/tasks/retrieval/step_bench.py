"""A contrastive training step of two adapted towers on a synthetic batch, as measured by ``tasks/memory.py``.

Images are noise and texts are random words, the same in every run. The values affect memory only where a method saves
just a part of a tap's values (SHERL in the joint space).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from torch import Tensor, nn

from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.engine.distributed import make_fabric
from vlkit.engine.optim import make_optimizer
from vlkit.memory.estimate import fake_copy, fake_tensors
from vlkit.memory.shapes import shape_base
from vlkit.memory.step import StepMemory, Times, measure_step, peak_bytes, times_in_turns, train_step
from vlkit.number_formats import assume_share
from vlkit.tasks.contrastive import gather_pairs, info_nce
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.two_tower import HeadOptions, TwoTower


class ContrastiveBench:
    """Training steps of any method on one base, measured or predicted.

    Args:
        base: name of the base.
        predicts: compute nothing: tensors have shapes but no values.
        text_length: tokens per text; default: the context length of the base.
        device: device of the steps, real or predicted (:func:`vlkit.engine.distributed.make_fabric`).
        precision: number format.
        active_share: for predicted steps: share of a tap's values that SHERL in the joint space saves, if it saves only
            the active ones. It depends on the data: 1 is the upper bound.
        image_size: side of the images in pixels; default: that of the base.

    Attributes:
        base: the base, never changed (every method gets a copy); on the meta device if steps are predicted.
        device: device of the steps, real or predicted.
        precision: number format of the step.
        predicts, text_length: as given.
    """

    def __init__(
        self,
        base: str,
        predicts: bool,
        text_length: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        active_share: float = 1.0,
        image_size: int | None = None,
    ) -> None:
        self._fabric = make_fabric(device, precision)
        self.device = self._fabric.device
        self.precision = self._fabric._precision.precision
        self.predicts = predicts
        self.active_share = active_share
        self.base: ClipBase = shape_base(base, image_size) if predicts else load_base(base, image_size=image_size)
        self.text_length = text_length or context_length(self.base)
        self._inference_peaks: dict[int, int] = {}
        self._pixels: Tensor | None = None  # of the last batch: many rows are measured on the same batch

    def model(self, options: Any) -> TwoTower:
        """Both towers with the method applied; new parameters have the same random weights every time."""
        towers = {"image": copy.deepcopy(self.base.image), "text": copy.deepcopy(self.base.text)}
        on_meta = torch.device("meta") if self.predicts else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), on_meta:
            torch.manual_seed(0)
            model = build_model(dataclasses.replace(self.base, **towers), options, HeadOptions()).train()
        return model if self.predicts else model.to(self.device)

    def memory(self, model: TwoTower, batch_size: int) -> StepMemory:
        """The memory of one training step."""
        with self._tensors():
            model, loss_of = self._step(model, batch_size)
            return measure_step(model, loss_of, optimizer_of(model))

    def inference_peak(self, batch_size: int) -> int:
        """Peak of :class:`Inference`, in bytes."""
        if batch_size not in self._inference_peaks:
            with self._tensors():
                infer = self.inference(batch_size)
                if self.device.type == "cuda" and not self.predicts:
                    infer()  # the first run also allocates library workspaces, which stay
                self._inference_peaks[batch_size] = peak_bytes(lambda _: infer(), self.device)
        return self._inference_peaks[batch_size]

    def time_over_inference(self, model: TwoTower, batch_size: int, repeats: int) -> float:
        """Time of a training step over that of :class:`Inference`."""
        return self.times(model, batch_size, repeats).ratio

    def times(self, model: TwoTower, batch_size: int, repeats: int) -> Times:
        """Times of a training step, alternating with :class:`Inference`."""
        return times_in_turns(self.step(model, batch_size), self.inference(batch_size), repeats)

    def step(self, model: TwoTower, batch_size: int) -> Callable[[], None]:
        """A function that runs one whole training step, with its own optimizer; can be called repeatedly."""
        _, loss_of = self._step(model, batch_size)
        optimizer = optimizer_of(model)
        return lambda: train_step(loss_of, optimizer)

    @contextlib.contextmanager
    def _tensors(self) -> Iterator[None]:
        if not self.predicts:
            yield
            return
        with fake_tensors(), assume_share(self.active_share):
            yield

    def _step(self, model: TwoTower, batch_size: int) -> tuple[TwoTower, Callable[[], Tensor]]:
        """The model (a fake copy if steps are predicted), and the forward of one step."""
        if self.predicts:
            model = fake_copy(model, self.device)
        pixels, ids = self.batch(batch_size)
        groups = torch.arange(batch_size, device=self.device)

        def loss_of() -> Tensor:
            with self._fabric.autocast():
                images, texts, scale, _ = model(pixels, ids)
                return info_nce(gather_pairs(images, texts, groups), scale)

        return model, loss_of

    def inference(self, batch_size: int) -> Callable[[], Any]:
        """A function that runs :class:`Inference` on a batch; can be called repeatedly."""
        towers = Inference(self.base)
        towers = fake_copy(towers, self.device) if self.predicts else towers.to(self.device)
        pixels, ids = self.batch(batch_size, context_length(self.base))

        def infer() -> Any:
            with torch.no_grad(), self._fabric.autocast():
                kind = self.device.type
                given = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
                # By default autocast keeps a cast copy of each trainable weight until it exits; inference needs none.
                with torch.autocast(kind, **given, cache_enabled=False):
                    return towers(pixels, ids)

        return infer

    def batch(self, batch_size: int, text_length: int | None = None) -> tuple[Tensor, Tensor]:
        """The synthetic batch: images [B, 3, H, W] and token ids [B, L]; L defaults to the steps' length."""
        pixels = self._pixels
        if pixels is None or len(pixels) != batch_size:
            size, generator = (batch_size, 3, *self.base.preprocess.size), torch.Generator().manual_seed(0)
            pixels = torch.randn(size, generator=generator).to(self.device)
            self._pixels = None if self.predicts else pixels  # a fake tensor belongs to the mode that created it
        ids = made_up_ids(self.base, batch_size, text_length or self.text_length)
        return pixels, ids.to(self.device)


class Inference(nn.Module):
    """The reference for training steps: both towers of a base in their own library's forward, without gradient.

    Texts are padded to the base's context length: open_clip's text towers take no other length.
    """

    def __init__(self, base: ClipBase) -> None:
        super().__init__()
        self.image, self.text = base.image.model, base.text.model
        self.eval()

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Any, Any]:
        """Outputs of the towers for images [B, 3, H, W] and token ids [B, L]."""
        return self.image(pixels), self.text(ids)


def optimizer_of(model: TwoTower) -> torch.optim.Optimizer:
    """The optimizer that training uses."""
    return make_optimizer({name: p for name, p in model.named_parameters() if p.requires_grad}, 1e-4, 0.01)


def context_length(base: ClipBase) -> int:
    """Context length of a base, in tokens."""
    config = open_clip.get_model_config(base.name.partition(":")[0].replace("/", "-"))
    if config is None:
        return base.tokenize(["a"]).shape[1]
    return config["text_cfg"].get("context_length", DEFAULT_CONTEXT_LENGTH)


def made_up_ids(base: ClipBase, batch_size: int, length: int) -> Tensor:
    """Ids [batch_size, length] int64 of texts without padding: random words and an end-of-text token."""
    ids = torch.randint(3, 6, (batch_size, length), generator=torch.Generator().manual_seed(0))
    ends = getattr(base.text.model, "pool_type", None) == "eos"
    ids[:, -1] = base.text.model.eos_id if ends else 6  # other towers find the end by the largest id, or not at all
    return ids
