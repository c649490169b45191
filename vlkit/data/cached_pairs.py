"""Training pairs through the cache of taps: what a two-tower task needs to train with ``--cache``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.data.tap_cache import CachedLoader, TapCache, check_room
from vlkit.data.tap_rows import Stored, TapBatch
from vlkit.data.tap_store import digest
from vlkit.encoders.bases import ClipBase
from vlkit.heads.embedding import TwoTower
from vlkit.loader import EpochLoader

# Texts that two different tokenizers are unlikely to cut alike.
TOKENIZER_PROBE = ["A photo of 12,345 dogs?", "naïve façade, it's re-used!", "UPPER lower " * 40]


class Pairs(Protocol):
    """A dataset of (medium, caption) pairs that can say what an example is made of without opening the medium.

    Attributes:
        captions: every caption of the split.
        captions_of: medium number -> numbers of its captions.
    """

    captions: list[str]
    captions_of: list[range]

    def __len__(self) -> int: ...
    def choose(self, index: int) -> tuple[int, int]:
        """Numbers of the medium and of the caption; may draw from the global generator of random."""
        ...

    def identify(self, medium: int) -> Any:
        """JSON value that changes when the medium does."""
        ...

    def pixels(self, media: list[int]) -> Tensor:
        """The media's pictures, [n * F, 3, H, W], F pictures a medium."""
        ...


@dataclass
class CachedPairs:
    """A dataset of pairs whose batches come out of the caches of both towers.

    Use as the dataset of an :class:`vlkit.loader.EpochLoader`, with :meth:`collate`, and wrap that with :meth:`loader`.

    Attributes:
        pairs: the dataset.
        image, text: the caches; ``image`` has ``frames`` rows for each medium.
        frames: pictures a medium.
    """

    pairs: Pairs
    image: TapCache
    text: TapCache
    frames: int = 1

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Numbers of the medium and of the caption."""
        return self.pairs.choose(index)

    def collate(self, examples: list[tuple[int, int]]) -> tuple[TapBatch, TapBatch, Tensor]:
        """Examples -> rows of the pictures [B * F], rows of the captions [B], groups [B]."""
        media, captions = (list(numbers) for numbers in zip(*examples, strict=True))
        rows = [medium * self.frames + frame for medium in media for frame in range(self.frames)]
        # Another caption is drawn in each epoch: all of a medium's captions are made when the first one is.
        also = [caption for medium in media for caption in self.pairs.captions_of[medium]]
        return self.image.look_up(rows), self.text.look_up(captions, also), torch.tensor(media)

    def loader(self, loader: EpochLoader) -> CachedLoader:
        """Put the caches behind a loader of this dataset."""
        return CachedLoader(loader, [self.image, self.text], self.image.fabric)


def cached_pairs(
    where: Path | Literal[True],
    stored: Stored,
    pairs: Pairs,
    model: TwoTower,
    base: ClipBase,
    fabric: Fabric,
    *,
    sampling: Mapping[str, Any] | None = None,
    frames: int = 1,
) -> CachedPairs:
    """Open the caches of both towers for a training set, say how large they are and check that the disk has room.

    Args:
        where: ``--cache``: the folder, or True for the default one.
        stored: ``--cache_dtype``.
        pairs: the training set, without augmentation.
        model: its towers, on the device.
        base: the base they stand on (fingerprints, preprocessing, tokenizer).
        fabric: the run's Fabric.
        sampling: how frames are chosen, as JSON values, for videos.
        frames: pictures a medium.

    Raises:
        UserError: the method has no early route, the folder cannot be written, or the disk lacks room.
    """
    folder = None if where is True else where
    media = [digest(pairs.identify(medium)) for medium in range(len(pairs.captions_of))]

    def load_pictures(rows: list[int]) -> Tensor:
        needed = list(dict.fromkeys(row // frames for row in rows))
        pixels = pairs.pixels(needed)
        return pixels if frames == 1 else pixels[[needed.index(r // frames) * frames + r % frames for r in rows]]

    def load_captions(rows: list[int]) -> Tensor:
        return base.text.trim(base.tokenize([pairs.captions[row] for row in rows]))

    image = TapCache(
        "image",
        model.image,
        media if frames == 1 else [digest(key.hex(), frame) for key in media for frame in range(frames)],
        load_pictures,
        {"base": base.identity["image"], "preprocess": base.preprocess.to_dict(), "sampling": sampling},
        folder=folder,
        stored=stored,
        fabric=fabric,
    )
    text = TapCache(
        "text",
        model.text,
        [digest(caption) for caption in pairs.captions],
        load_captions,
        {"base": base.identity["text"], "tokens": digest(base.tokenize(TOKENIZER_PROBE).tolist()).hex()},
        folder=folder,
        stored=stored,
        fabric=fabric,
    )
    check_room([image, text])
    return CachedPairs(pairs, image, text, frames)
