"""Pipeline for captions: an image -> a sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor

from vlkit.adapters.options import adapter_options
from vlkit.data.images import ImageInput, as_rgb
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError, listed
from vlkit.tasks.batching import Batching
from vlkit.tasks.captioning.evaluate import Captioner, Captions
from vlkit.tasks.captioning.model import build_model, head_options, identity_of

IMAGES_AT_ONCE = 32
"""Most images, from several callers, in one batch."""


class CaptioningPipeline:
    """``model.caption("dog.jpg")`` -> ``"a dog on the grass"``.

    Safe to call from several threads; calls that arrive while the model is busy are batched.

    Args:
        captioner: model, bases and device.
        name: name used in messages.
        metrics: the metrics recorded in the adapter's config.
        identity: short text that identifies the model; captions in an index are marked with it.
    """

    def __init__(self, captioner: Captioner, name: str, metrics: dict[str, float], identity: str = "") -> None:
        self.captioner, self.name, self.metrics, self.identity = captioner, name, metrics, identity or name
        self._together = Batching(self._caption, IMAGES_AT_ONCE)

    def caption(self, image: ImageInput) -> str:
        """The best caption of an image.

        Raises:
            vlkit.data.images.MediaError: a file is not a readable image; names it and the reason.
        """
        return self.captions(image, 1)[0][0]

    def captions(self, image: ImageInput, k: int = 5) -> Captions:
        """The k best captions of an image with their probabilities, best first.

        Raises:
            UserError: ``k`` is less than 1.
        """
        if k < 1:
            raise UserError(f"k={k}: must be at least 1")
        return self._together([(image, k)])[0]

    def caption_all(self, images: Iterable[ImageInput]) -> list[str]:
        """The best caption of each image.

        Raises:
            UserError: one image in place of several.
        """
        return [found[0][0] for found in self._together([(image, 1) for image in listed(images, "images")])]

    def _caption(self, asked: list[tuple[ImageInput, int]]) -> list[Captions]:
        """The beam depends on ``k``, so each ``k`` runs alone."""
        found: dict[int, Captions] = {}
        for k in {k for _, k in asked}:
            rows = [row for row, (_, own) in enumerate(asked) if own == k]
            images = [asked[row][0] for row in rows]
            found |= zip(rows, self.captioner.caption(images, as_rgb, k), strict=True)
        return [found[row] for row in range(len(asked))]


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> CaptioningPipeline:
    """Attach a saved adapter to its bases; see :func:`vlkit.tasks.load.load`."""
    image = config["base"]["image"]
    base = base or load_base(image["load"], image_size=image.get("image_size"))
    text = text_side(config["base"]["text"]["load"], base, text_base)
    check_base(config, identity_of(base, text), folder)
    with built_for(tensors, folder, base.image.model, text.encoder.model):
        head = head_options(config["head"])
        model = build_model(base, text, adapter_options(config["adapters"]["image"]), head)
    load_trained(model, tensors, folder)
    fabric.setup_module(model.requires_grad_(False)).eval()
    captioner = Captioner(model, base, text, head, fabric)
    # Weights and options: a folder that was renamed is the same model.
    fingerprint = hashlib.sha256(
        save(dict(tensors)) + json.dumps([config["base"], config["head"]]).encode()
    ).hexdigest()
    identity = f"{fingerprint[:16]}{getattr(tensors, 'tag', '')}"
    return CaptioningPipeline(captioner, folder.name, config.get("metrics", {}), identity)
