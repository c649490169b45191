"""Images with texts about them, through the cache of taps: what VQA and grounding need to train with ``--cache``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.engine.loader import EpochLoader
from vlkit.number_formats import NumberFormat
from vlkit.tap_cache.maker import CachedLoader, TapCache, check_room
from vlkit.tap_cache.pairs import TOKENIZER_PROBE
from vlkit.tap_cache.rows import TapBatch
from vlkit.tap_cache.store import digest


class ImagesWithTexts(Protocol):
    """A dataset whose examples are an image with some texts, and that can make them without opening the image.

    Attributes:
        texts: every text of it; one that occurs twice may be there twice.
    """

    texts: list[str]

    def __len__(self) -> int: ...
    def unopened(self, index: int) -> Any:
        """What ``dataset[index]`` gives, but with ``index`` in place of pixels; draws the same random numbers."""
        ...

    def identify(self, index: int) -> Any:
        """JSON value that changes when the image of an example does; examples of one image have the same."""
        ...

    def load(self, indices: list[int]) -> Tensor:
        """Images of examples as the tower takes them, [n, 3, H, W]."""
        ...


@dataclass
class CachedImages:
    """A dataset of images with texts whose batches come out of the caches of both towers.

    Use as the dataset of an :class:`vlkit.engine.loader.EpochLoader` whose collate takes the images of a batch with
    :meth:`stack` and its texts with :meth:`read`, and wrap that with :meth:`loader`.

    Attributes:
        examples: the dataset.
        images: the cache of the examples' images; None for a model that does not look.
        texts: the cache of the different texts.
        rows: text -> its row.
    """

    examples: ImagesWithTexts
    images: TapCache | None
    texts: TapCache
    rows: dict[str, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        """An example with its number in place of pixels."""
        return self.examples.unopened(index)

    def stack(self, numbers: list[int]) -> TapBatch | Tensor:
        """Numbers of P examples -> the rows of their images, or [P, 0] for a model that does not look."""
        return torch.empty(len(numbers), 0) if self.images is None else self.images.look_up(numbers)

    def read(self, texts: list[str]) -> TapBatch:
        """B texts -> their rows."""
        return self.texts.look_up([self.rows[text] for text in texts])

    def loader(self, loader: EpochLoader) -> CachedLoader:
        """Put the caches behind a loader of this dataset."""
        caches = [cache for cache in (self.images, self.texts) if cache is not None]
        return CachedLoader(loader, caches, self.texts.fabric)


def cached_images(
    where: Path | Literal[True],
    stored: NumberFormat,
    examples: ImagesWithTexts,
    model: nn.Module,
    base: ClipBase,
    text: TextSide,
    fabric: Fabric,
    *,
    preprocess: Mapping[str, Any],
) -> CachedImages:
    """Open the caches of both towers for a training set, say how large they are and check that the disk has room.

    Args:
        where: ``--cache``: the folder, or True for the default one.
        stored: ``--cache_dtype``.
        examples: the training set, without augmentation.
        model: has the adapted towers as ``image`` (None: it does not look) and ``text``, on the device.
        base: the contrastive base its images go through.
        text: what reads its texts.
        fabric: the run's Fabric.
        preprocess: how images are prepared, as JSON values.

    Raises:
        UserError: the method has no early route, the folder cannot be written, or the disk lacks room.
    """
    options: dict[str, Any] = {"folder": None if where is True else where, "stored": stored, "fabric": fabric}
    images = None
    if model.image is not None:
        images = TapCache(
            "image",
            cast(AdaptedEncoder, model.image),
            [digest(examples.identify(index)) for index in range(len(examples))],
            examples.load,
            {"base": base.identity["image"], "preprocess": preprocess},
            **options,
        )
    different = list(dict.fromkeys(examples.texts))
    # The name a tower was asked for does not change what it gives: the fingerprint tells it.
    identity = {name: value for name, value in text.identity["text"].items() if name != "load"}
    texts = TapCache(
        "text",
        cast(AdaptedEncoder, model.text),
        [digest(one) for one in different],
        lambda rows: text.tokenize([different[row] for row in rows]),
        {"base": identity, "tokens": digest(text.tokenize(TOKENIZER_PROBE).tolist()).hex()},
        **options,
    )
    check_room([texts] if images is None else [images, texts])
    return CachedImages(examples, images, texts, {one: row for row, one in enumerate(different)})
