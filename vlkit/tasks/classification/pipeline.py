"""Pipeline for classification: an image -> classes and their probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.options import adapter_options
from vlkit.data.images import ImageInput, as_rgb
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.distributed import make_fabric
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError, listed
from vlkit.metrics.classification import probabilities
from vlkit.tasks.batching import Batching
from vlkit.tasks.classification.evaluate import Labeller
from vlkit.tasks.classification.heads import ZeroshotOptions, unit
from vlkit.tasks.classification.model import build_model, head_options, identity_of
from vlkit.tasks.classification.prompts import GENERAL, Prompts, class_weights

BATCH = 64
"""Most images, from several callers, in one batch."""


class ClassificationPipeline:
    """An adapted classifier: image -> [(class, probability), …].

    Safe to call from several threads; calls that arrive while the model is busy are batched.

    Args:
        labeller: model, base and device.
        prompts: the classes, and the templates for other classes.
        name: name used in messages.
        metrics: the metrics recorded in the adapter's config.
    """

    def __init__(self, labeller: Labeller, prompts: Prompts, name: str, metrics: dict[str, float]) -> None:
        self.labeller, self.prompts, self.name, self.metrics = labeller, prompts, name, metrics
        # Opened before, so that a bad file fails only its own call. Features and scores come from one forward.
        self._together: Batching[Any, Any] = Batching(lambda images: list(labeller.features(images, _same)), BATCH)
        self._weights = lru_cache(maxsize=16)(self._weights_of)

    @property
    def classes(self) -> list[str]:
        """The classes the adapter was trained for, in the order of its scores."""
        return list(self.prompts.classes)

    def classify(
        self, image: ImageInput, classes: Sequence[str] | None = None, k: int | None = None
    ) -> list[tuple[str, float]]:
        """Classes with their probabilities, most probable first.

        Args:
            image: path or PIL image.
            classes: other class names, which are compared by their prompts with the adapted image embedding; None = the
                adapter's own classes and head.
            k: most classes to return; None = all, whose probabilities add up to 1.

        Raises:
            UserError: a class name is blank or given twice, ``k`` is below 1, or the base has no joint space for class
                names.
            vlkit.data.images.MediaError: the file is not a readable image; names it and the reason.
        """
        return self.classify_many([image], classes, k)[0]

    def classify_many(
        self, images: Iterable[ImageInput], classes: Sequence[str] | None = None, k: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """The result of :meth:`classify` for each image."""
        refuse_count(k)
        images = listed(images, "images")
        prompts = self.prompts if classes is None else self.prompts.of(classes)
        weights = None if classes is None else self._weights(tuple(prompts.classes))
        found = []
        for start in range(0, len(images), BATCH):
            opened = [as_rgb(image) for image in images[start : start + BATCH]]
            found += ranked(self._scores(torch.stack(self._together(opened)), weights), prompts.classes, k)
        return found

    def prompt_scores(self, features: Tensor, prompts: Prompts) -> Tensor:
        """Logits [n, C] float32 of pooled embeddings [n, E] for any classes, by their prompts.

        Raises:
            UserError: the base has no joint space.
        """
        return self._scores(features, class_weights(self.labeller.base, prompts, self.labeller.fabric))

    @torch.no_grad()
    def _scores(self, features: Tensor, weights: Tensor | None) -> Tensor:
        """Logits [n, C] float32 on the CPU: of the head, or of class vectors."""
        if weights is None:
            head = self.labeller.model.head
            return head(features.to(self.labeller.fabric.device)).float().cpu()
        scale = np.exp(min(self.labeller.base.logit_scale, np.log(100)))
        return float(scale) * unit(features) @ weights.T

    def _weights_of(self, classes: tuple[str, ...]) -> Tensor:
        return class_weights(self.labeller.base, self.prompts.of(classes), self.labeller.fabric)


def ranked(scores: Tensor, classes: Sequence[str], k: int | None) -> list[list[tuple[str, float]]]:
    """Logits [n, C] -> for each row its ``k`` most probable classes (None = all), most probable first."""
    found = []
    for row in probabilities(scores.numpy()):
        order = np.argsort(-row, kind="stable")[:k]
        found.append([(classes[i], float(row[i])) for i in order])
    return found


def refuse_count(k: int | None) -> None:
    """Refuse a number of classes below 1.

    Raises:
        UserError: it is.
    """
    if k is not None and k < 1:
        raise UserError(f"k={k}: must be at least 1")


def _same(image: Image.Image) -> Image.Image:
    return image


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> ClassificationPipeline:
    """Attach a saved adapter to its base; see :func:`vlkit.tasks.load.load`. ``text_base`` is not used."""
    base = base or load_base(config["base"]["image"]["load"], image_size=config.get("preprocess", {}).get("image_size"))
    check_base(config, identity_of(base), folder)
    with built_for(tensors, folder, base.image.model, base.text.model):
        head, prompts, count = head_options(config["head"])
        adapter = adapter_options(config["adapters"]["image"])
        model = build_model(base, adapter, head, len(prompts.classes), count=count)
    load_trained(model, tensors, folder)
    fabric.setup_module(model.requires_grad_(False)).eval()
    return ClassificationPipeline(Labeller(model, base, fabric), prompts, folder.name, config.get("metrics", {}))


def load_zero_shot(
    base_name: str,
    classes: Sequence[str],
    device: str = "auto",
    templates: Sequence[str] = GENERAL,
    base: ClipBase | None = None,
) -> ClassificationPipeline:
    """The unadapted base as a classifier of any class names; pass ``base`` if it is already loaded.

    Raises:
        UserError: the base has no joint space, or a class name is blank or given twice.
    """
    return zero_shot_pipeline(base_name, Prompts((), templates).of(classes), device, base)


def zero_shot_pipeline(
    base_name: str, prompts: Prompts, device: str = "auto", base: ClipBase | None = None
) -> ClassificationPipeline:
    """The unadapted base with any prompts; see :func:`load_zero_shot`."""
    base, fabric = base or load_base(base_name), make_fabric(device)
    weights = class_weights(base, prompts, fabric)
    model = build_model(base, LinearOptions(), ZeroshotOptions(), len(prompts.classes), weights)
    fabric.setup_module(model.requires_grad_(False)).eval()
    return ClassificationPipeline(Labeller(model, base, fabric), prompts, f"zero-shot {base.name}", {})
