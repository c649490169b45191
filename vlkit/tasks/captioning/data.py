"""Images with their captions as examples: an image is encoded once for several of its captions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlkit.data.images import read_image
from vlkit.data.manifest import Dataset
from vlkit.tasks.retrieval.data import Transform

Example = tuple[Tensor, list[str]]


@dataclass
class CaptionData:
    """Dataset to train on: a prepared dataset for retrieval, that is images with captions."""

    root: Path | None = None
    """Prepared dataset (data_prep/coco.py, from_folder.py, ...), Parquet files, or a Hugging Face dataset (folder,
    hf:ORG/NAME); default: the demo dataset, made on first use."""
    columns: str = ""
    """Columns of rows: image=COLUMN,texts=COLUMN,split=COLUMN; guessed from names and types if left out."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset: 400, 2,000 or 10,000 training images with five captions each."""
    style: Literal["plain", "drawn"] = "plain"
    """Style of the demo dataset: plain drawings, known to the embedded bases, or hand-drawn ones, new to them."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split to report on; if missing, the validation split."""
    per_image: int = 0
    """Most captions per image in a step, drawn anew in each epoch; 0 = all. The image is encoded once for them."""
    augment: Literal["none", "crop"] = "none"
    """Augmentation of training images; mirroring would make captions about left and right wrong."""


class CaptionedImages:
    """Examples of one image and its captions.

    Args:
        dataset: a prepared dataset for retrieval.
        split: which split.
        transform: image -> [3, H, W].
        per_image: most captions per image in an example, drawn anew on each access; 0 = all.
    """

    def __init__(self, dataset: Dataset, split: str, transform: Transform, per_image: int = 0) -> None:
        self.dataset, self.transform, self.per_image = dataset, transform, per_image
        self.records = dataset.records(split)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Pixels [3, H, W] and captions."""
        record = self.records[index]
        texts = record["texts"]
        if 0 < self.per_image < len(texts):
            texts = random.sample(texts, self.per_image)
        return self.transform(read_image(self.dataset, record)), texts

    @property
    def texts(self) -> list[str]:
        """The captions of all records."""
        return [text for record in self.records for text in record["texts"]]


class Batch(NamedTuple):
    """P images and B captions of a training step."""

    pixels: Tensor
    """[P, 3, H, W]."""
    prompts: Tensor
    """[B, L] int64, the prompt, once for each caption."""
    owner: Tensor
    """[B] int64, the image of each caption."""
    targets: Tensor
    """[B, T] int64, the captions' tokens, end token included, padded."""


class CaptionCollate:
    """Examples of :class:`CaptionedImages` -> :class:`Batch`.

    Args:
        prompt: [L] int64, the prompt's tokens.
        tokenize: captions -> ids [B, T], padded.
    """

    def __init__(self, prompt: Tensor, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.prompt, self.tokenize = prompt, tokenize

    def __call__(self, examples: list[Example]) -> Batch:
        texts = [text for _, group in examples for text in group]
        owner = torch.tensor([place for place, (_, group) in enumerate(examples) for _ in group])
        pixels = torch.stack([pixels for pixels, _ in examples])
        return Batch(pixels, self.prompt.expand(len(texts), -1), owner, self.tokenize(texts))
