"""Image-text records as examples for training and evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlkit.data.images import identify_record, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.errors import UserError

Transform = Callable[[Image.Image], Tensor]


class CaptionedRecords:
    """(image or video, caption) examples, without the image or video itself.

    Args:
        records: each with ``texts``.
        every_caption: each caption is a separate example; else each record is one, with a caption drawn on each access.

        Attributes:
        captions: every caption of the records.
        captions_of: record index -> indices of its captions.
    """

    def __init__(self, records: Sequence[Record], every_caption: bool) -> None:
        self.records, self.every_caption = list(records), every_caption
        counts = [len(r["texts"]) if every_caption else 1 for r in self.records]
        self.examples = [(group, k) for group, count in enumerate(counts) for k in range(count)]
        self.captions = [text for record in self.records for text in record["texts"]]
        ends = list(accumulate(len(record["texts"]) for record in self.records))
        self.captions_of = [range(end - len(r["texts"]), end) for r, end in zip(self.records, ends, strict=True)]

    def __len__(self) -> int:
        return len(self.examples)

    def choose(self, index: int, draw: Any = random) -> tuple[int, int]:
        """Indices of the record and of the caption (in ``captions``) of example ``index``.

        Args:
            index: index of the example.
            draw: source of randomness, if the caption is drawn: the module random (which the loader seeds for each
                epoch and example), or a ``random.Random`` in the same state.
        """
        group, k = self.examples[index]
        return group, self.captions_of[group][k] if self.every_caption else draw.choice(self.captions_of[group])

    def lengths(self, count: Callable[[list[str]], Tensor]) -> list[int] | Callable[[int, random.Random], int]:
        """Lengths of the examples' captions, for :class:`vlkit.engine.loader.EpochLoader`.

        Args:
            count: texts -> number of tokens of each, [n] int64.
        """
        numbers = torch.cat([count(self.captions[i : i + 4096]) for i in range(0, len(self.captions), 4096)]).tolist()
        if self.every_caption:
            return [numbers[self.choose(index)[1]] for index in range(len(self))]
        return lambda index, draw: numbers[self.choose(index, draw)[1]]


class ImageTextPairs(CaptionedRecords):
    """(image, caption) examples; the group number marks captions of one image.

    Args:
        dataset: a prepared dataset.
        split: which split.
        transform: image -> [3, H, W].
        every_caption: each caption is a separate example; else each image is one, with a caption drawn on each access.
        limit: number of records, drawn with a fixed seed; 0 = all.

    Raises:
        UserError: ``limit`` is negative or more than the records of the split.
    """

    def __init__(
        self, dataset: Dataset, split: str, transform: Transform, every_caption: bool = True, limit: int = 0
    ) -> None:
        records = dataset.records(split)
        if not 0 <= limit <= len(records):
            most = f"{dataset.split_file(split)} has {len(records):,} records"
            raise UserError(f"--data.limit {limit}: {most}; give at most this many, or 0 for all")
        super().__init__(random.Random(0).sample(records, limit) if limit else records, every_caption)
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, index: int) -> tuple[Tensor, str, int]:
        """Pixels [3, H, W], a caption and the group number."""
        group, caption = self.choose(index)
        return self.transform(read_image(self.dataset, self.records[group])), self.captions[caption], group

    def identify(self, medium: int) -> list[Any]:
        """A value that changes when the image does: its path, size and modification time."""
        return identify_record(self.dataset, self.records[medium])

    def load(self, media: list[int]) -> Tensor:
        """Images as input of the tower, [n, 3, H, W]; deterministic without augmentation."""
        return torch.stack([self.transform(read_image(self.dataset, self.records[medium])) for medium in media])


class PairCollate:
    """Examples of :class:`ImageTextPairs` -> pixels [B, 3, H, W], ids [B, L], groups [B].

    Args:
        tokenize: texts -> ids [B, L].
        trim: removes padding without changing outputs (:meth:`vlkit.encoders.towers.text.TextEncoder.trim`).
    """

    def __init__(self, tokenize: Callable[[list[str]], Tensor], trim: Callable[[Tensor], Tensor]) -> None:
        self.tokenize, self.trim = tokenize, trim

    def __call__(self, examples: list[tuple[Tensor, str, int]]) -> tuple[Tensor, Tensor, Tensor]:
        pixels, texts, groups = zip(*examples, strict=True)
        return torch.stack(pixels), self.trim(self.tokenize(list(texts))), torch.tensor(groups)
