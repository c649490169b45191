"""Tap caches for training pairs: two-tower tasks with ``--cache``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.encoders.bases import ClipBase
from vlkit.engine.loader import EpochLoader
from vlkit.number_formats import NumberFormat
from vlkit.tap_cache.maker import CachedLoader, TapCache, check_room
from vlkit.tap_cache.rows import TapBatch
from vlkit.tap_cache.store import digest

# Texts that two different tokenizers are unlikely to split in the same way.
TOKENIZER_PROBE = ["A photo of 12,345 dogs?", "naïve façade, it's re-used!", "UPPER lower " * 40]


class Pairs(Protocol):
    """A dataset of (medium, caption) pairs that can list the parts of an example without opening the medium.

    Attributes:
        captions: every caption.
        captions_of: index of a medium (image or clip) -> indices of its captions.
    """

    captions: list[str]
    captions_of: list[range]

    def __len__(self) -> int: ...
    def choose(self, index: int) -> tuple[int, int]:
        """Indices of the medium and of the caption; may draw from Python's global random generator."""
        ...

    def identify(self, medium: int) -> Any:
        """JSON value that identifies the content of the medium."""
        ...

    def load(self, media: list[int]) -> Any:
        """Inputs for the cache of the media: images [n, 3, H, W], or a list of clips [t, 3, H, W]."""
        ...


@dataclass
class CachedPairs:
    """A dataset of pairs whose batches come from the caches of both towers.

    Use it with :meth:`collate` in an :class:`~vlkit.engine.loader.EpochLoader`, and wrap that with :meth:`loader`.

    Attributes:
        pairs: the dataset.
        media, texts: the caches.
    """

    pairs: Pairs
    media: TapCache
    texts: TapCache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Indices of the medium and of the caption."""
        return self.pairs.choose(index)

    def collate(self, examples: list[tuple[int, int]]) -> tuple[TapBatch, TapBatch, Tensor]:
        """Examples -> rows of the media, rows of the captions, groups [B]."""
        media, captions = (list(numbers) for numbers in zip(*examples, strict=True))
        # Each epoch draws another caption: compute all captions of a medium together with the first one.
        also = [caption for medium in media for caption in self.pairs.captions_of[medium]]
        return self.media.look_up(media), self.texts.look_up(captions, also), torch.tensor(media)

    def loader(self, loader: EpochLoader) -> CachedLoader:
        """Wrap a loader of this dataset so that the caches complete its batches."""
        return CachedLoader(loader, [self.media, self.texts], self.texts.fabric)


def cached_pairs(
    where: Path | Literal[True],
    stored: NumberFormat,
    pairs: Pairs,
    model: nn.Module,
    base: ClipBase,
    fabric: Fabric,
    *,
    name: str = "image",
    sampling: Mapping[str, Any] | None = None,
    cache: Callable[..., TapCache] = TapCache,
) -> CachedPairs:
    """Open the caches of both towers for a training set, log their sizes and check the free disk space.

    Args:
        where: ``--cache``: the folder, or True for the default one.
        stored: ``--cache_dtype``.
        pairs: the training set, without augmentation.
        model: has the adapted towers as ``image`` and ``text``, on the device.
        base: the base of both towers (fingerprints, preprocessing, tokenizer).
        fabric: the run's Fabric.
        name: name of the media cache.
        sampling: frame sampling of clips, as JSON values.
        cache: class of the media cache: :class:`TapCache`, or its subclass for clips.

    Raises:
        UserError: the method has no early route, the folder is not writable, or the disk lacks space.
    """
    options: dict[str, Any] = {"folder": None if where is True else where, "stored": stored, "fabric": fabric}

    def load_captions(rows: list[int]) -> Tensor:
        return base.text.trim(base.tokenize([pairs.captions[row] for row in rows]))

    media = cache(
        name,
        model.image,
        [digest(pairs.identify(medium)) for medium in range(len(pairs.captions_of))],
        pairs.load,
        {"base": base.identity["image"], "preprocess": base.preprocess.to_dict(), "sampling": sampling},
        **options,
    )
    texts = TapCache(
        "text",
        cast(AdaptedEncoder, model.text),
        [digest(caption) for caption in pairs.captions],
        load_captions,
        {"base": base.identity["text"], "tokens": digest(base.tokenize(TOKENIZER_PROBE).tolist()).hex()},
        **options,
    )
    check_room([media, texts])
    return CachedPairs(pairs, media, texts)
