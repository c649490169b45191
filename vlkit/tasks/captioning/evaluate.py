"""Write captions and measure them. Shared by training, evaluation and serving."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.images import image_batches, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.engine.distributed import gather_objects, my_share
from vlkit.metrics.captions import caption_metrics
from vlkit.metrics.java_captions import java_caption_metrics
from vlkit.tasks.captioning.model import CaptionOptions, writing_base
from vlkit.tasks.generation import ImageWriter, beam_search

Captions = list[tuple[str, float]]
"""Captions with their probabilities, best first."""


class Captioner:
    """Writes captions of images in batches, without gradient.

    Args:
        model: the model on its device; run in eval mode, its mode is restored.
        base: its contrastive base.
        text: its T5.
        head: how captions are written.
        fabric: device and precision.
        batch_size: images per batch.
    """

    def __init__(
        self,
        model: ImageWriter,
        base: ClipBase,
        text: TextSide,
        head: CaptionOptions,
        fabric: Fabric,
        batch_size: int = 32,
    ) -> None:
        self.model, self.base, self.text, self.head, self.fabric = model, base, text, head, fabric
        self.batch_size, self.transform = batch_size, image_transform(base.preprocess)
        self.prompt = prompt_of(text, head)

    @torch.no_grad()
    def caption(
        self, sources: Sequence[Any], open_one: Callable[[Any], Image.Image], k: int = 1, label: str = "captions"
    ) -> list[Captions]:
        """The k best captions of each image.

        Args:
            sources: images in any form that ``open_one`` reads.
            open_one: source -> RGB image.
            k: captions per image; the beam is at least this wide.
            label: label of the progress bar.
        """
        training = self.model.training
        self.model.eval()
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        images = image_batches(list(sources), lambda source: self.transform(open_one(source)), self.batch_size)
        total = -(-len(sources) // self.batch_size)
        found: list[Captions] = []
        for pixels in track(images, label, total, console=Console(stderr=True), transient=True, disable=hidden):
            found += self._caption_batch(pixels, k)
        self.model.train(training)
        return found

    def _caption_batch(self, pixels: Tensor, k: int) -> list[Captions]:
        base = writing_base(self.text)
        prompts = self.prompt.expand(len(pixels), -1)
        with self.fabric.autocast():
            memory = self.model.memory(self.fabric.to_device(pixels), self.fabric.to_device(prompts))
            ids, scores = beam_search(
                self.model,
                memory,
                cast(int, base.start_id),
                base.tokenizer.eos_token_id,
                self.text.pad_id,
                max(k, self.head.beams),
                self.head.max_tokens,
                self.head.length_power,
                self.head.no_repeat,
            )
        found = []
        for rows, logs in zip(ids[:, :k].tolist(), scores[:, :k].float().exp().tolist(), strict=True):
            texts = base.tokenizer.batch_decode(rows, skip_special_tokens=True)
            found.append([(text.strip(), share) for text, share in zip(texts, logs, strict=True)])
        return found


def prompt_of(text: TextSide, head: CaptionOptions) -> Tensor:
    """[L] int64, the tokens of the prompt."""
    return writing_base(text).tokenize([head.prompt])[0]


def caption_records(captioner: Captioner, dataset: Dataset, records: Sequence[Record], label: str) -> list[str]:
    """The best caption of every record, in order; processes share the images."""
    mine = my_share(captioner.fabric, len(records))
    found = captioner.caption([records[i] for i in mine], lambda record: read_image(dataset, record), label=label)
    pairs = [(i, captions[0][0]) for i, captions in zip(mine, found, strict=True)]
    everywhere = dict(pair for share in gather_objects(captioner.fabric, pairs) for pair in share)
    return [everywhere[i] for i in range(len(records))]


def evaluate_split(captioner: Captioner, dataset: Dataset, split: str, java: bool = False) -> dict[str, float]:
    """``cider bleu1 … bleu4 rouge_l`` of a split (:func:`vlkit.metrics.captions.caption_metrics`); with ``java``, on
    official words, and ``meteor`` and ``spice`` (:func:`vlkit.metrics.java_captions.java_caption_metrics`).
    """
    records = dataset.records(split)
    captions = caption_records(captioner, dataset, records, f"{split} captions")
    return (java_caption_metrics if java else caption_metrics)(captions, [record["texts"] for record in records])
