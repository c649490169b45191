"""Tap caches for images with texts about them: VQA and grounding with ``--cache``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """A dataset of images with texts that can create its examples without opening the image.

    Attributes:
        texts: every text of the dataset; may contain duplicates.
        image_count: number of images, as :meth:`identify` and :meth:`load` number them; examples have one each, in
            order, or several.
    """

    texts: list[str]
    image_count: int

    def __len__(self) -> int: ...
    def unopened(self, index: int) -> Any:
        """Like ``dataset[index]``, but with the numbers of its images in place of pixels; draws the same random
        numbers.
        """
        ...

    def identify(self, number: int, /) -> Any:
        """JSON value that identifies the content of an image; equal for equal images."""
        ...

    def load(self, numbers: list[int], /) -> Tensor:
        """Preprocessed images, [n, 3, H, W]."""
        ...


@dataclass
class CachedImages:
    """A dataset of images with texts whose batches come from the caches of both towers.

    Use it as the dataset of an :class:`vlkit.engine.loader.EpochLoader` whose collate gets the images of a batch from
    :meth:`stack` and its texts from :meth:`read`, and wrap that loader with :meth:`loader`.

    Attributes:
        examples: the dataset.
        images: the cache of the examples' images; None for a text-only model.
        texts: the cache of the distinct texts.
        rows: text -> its row number.
    """

    examples: ImagesWithTexts
    images: TapCache | None
    texts: TapCache
    rows: dict[str, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        """An example with the numbers of its images in place of pixels."""
        return self.examples.unopened(index)

    def stack(self, numbers: list[int]) -> TapBatch | Tensor:
        """Numbers of P images -> their rows, or [P, 0] for a text-only model."""
        return torch.empty(len(numbers), 0) if self.images is None else self.images.look_up(numbers)

    def stack_several(self, numbers: list[Tensor]) -> TapBatch | Tensor:
        """As :meth:`stack`, of examples with several images each."""
        return self.stack(torch.cat(numbers).tolist())

    def read(self, texts: list[str]) -> TapBatch:
        """B texts -> their rows."""
        return self.texts.look_up([self.rows[text] for text in texts])

    def loader(self, loader: EpochLoader) -> CachedLoader:
        """Wrap a loader of this dataset so that the caches complete its batches."""
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
    name: str = "image",
    sampling: Mapping[str, Any] | None = None,
    cache: Callable[..., TapCache] = TapCache,
) -> CachedImages:
    """Open the caches of both towers for a training set, log their sizes and check the free disk space.

    Args:
        where: ``--cache``: the folder, or True for the default one.
        stored: ``--cache_dtype``.
        examples: the training set, without augmentation.
        model: has the adapted towers as ``image`` (None for a text-only model) and ``text``, on the device.
        base: the contrastive base that encodes the images.
        text: the text encoder.
        fabric: the run's Fabric.
        preprocess: image preprocessing, as JSON values.
        name: name of the media cache.
        sampling: how frames of videos are chosen, as JSON values; None for images.
        cache: class of the media cache: :class:`TapCache`, or its subclass for videos.

    Raises:
        UserError: the method has no early route, the folder is not writable, or the disk lacks space.
    """
    options: dict[str, Any] = {"folder": None if where is True else where, "stored": stored, "fabric": fabric}
    images = None
    if model.image is not None:
        key: dict[str, Any] = {"base": base.identity["image"], "preprocess": preprocess}
        images = cache(
            name,
            cast(AdaptedEncoder, model.image),
            [digest(examples.identify(number)) for number in range(examples.image_count)],
            examples.load,
            key if sampling is None else {**key, "sampling": sampling},
            **options,
        )
    different = list(dict.fromkeys(examples.texts))
    # The name of a tower does not affect its output; the fingerprint identifies the weights.
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
