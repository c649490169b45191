"""Pipeline for visual grounding: an image and a text -> boxes in the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.adapters.options import adapter_options
from vlkit.data.images import ImageInput, as_rgb
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError
from vlkit.tasks.batching import Batching
from vlkit.tasks.grounding.evaluate import Found, Locator
from vlkit.tasks.grounding.model import build_model, head_options, identities, load_shape

IMAGES_AT_ONCE = 32
"""Most images, from several callers, in one batch."""


class Candidate(NamedTuple):
    """A box that a text may refer to."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the original image, inside it."""
    score: float
    """0..1. For the best candidate, and for all candidates of a model with several queries: the IoU with the correct
    box that the model expects. For a runner-up of a model with one query: the best score times the heat at its place,
    as a share of the hottest. That value was not trained to be an IoU."""


class GroundingPipeline:
    """An adapted grounding model: finds the box in an image that a text refers to.

    Safe to call from several threads; calls that arrive while the model is busy are batched.

    Args:
        locator: model, bases and device.
        name: name used in messages.
        metrics: the metrics recorded in the adapter's config.
    """

    def __init__(self, locator: Locator, name: str, metrics: dict[str, float]) -> None:
        self.locator, self.name, self.metrics = locator, name, metrics
        self._together = Batching(self._find, IMAGES_AT_ONCE)

    def ground(self, image: ImageInput, text: str, candidates: int = 1) -> Candidate | list[Candidate]:
        """The box that ``text`` refers to, with its score: ``box, score = model.ground("dogs.jpg", "the left dog")``.

        Args:
            image: path or PIL image.
            text: what to find.
            candidates: if more than 1, return a list of at most that many, best first; the first is the single answer.

        Raises:
            UserError: the text is blank, or ``candidates`` is below 1.
            vlkit.data.images.MediaError: the file is not a readable image; names it and the reason.
        """
        found = self.candidates(image, text, candidates)
        return found[0] if candidates == 1 else found

    def candidates(self, image: ImageInput, text: str, k: int = 1) -> list[Candidate]:
        """The k best candidates, or all if there are fewer; see :meth:`ground`.

        A model with several queries (``--head.queries``) has that many. A model with one query gives its answer and
        boxes at further peaks of its heat map, which do not overlap (IoU below 0.5).
        """
        if not text.strip():
            raise UserError("the text is blank; say what to find in the image")
        if k < 1:
            raise UserError(f"candidates={k}: must be at least 1")
        warn_of_cut_texts(self.locator.text, [text], "texts")
        opened = as_rgb(image)
        (found,) = self._together([(opened, text, k)])
        inside = np.clip(found.boxes, 0, np.array([opened.width, opened.height] * 2, dtype=np.float32))
        pairs = zip(inside[:k].tolist(), found.scores[:k].tolist(), strict=True)
        return [Candidate(tuple(box), score) for box, score in pairs]

    def _find(self, asked: list[tuple[Image.Image, str, int]]) -> list[Found]:
        """Candidates for each image and its text, as many as the largest request among the callers."""
        images, texts, counts = zip(*asked, strict=True)
        each = [[text] for text in texts]
        found = self.locator.find(images, each, lambda image: image, candidates=max(counts))
        return [own[0] for own in found]


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> GroundingPipeline:
    """Attach a saved adapter to its bases; see :func:`vlkit.tasks.load.load`."""
    base = base or load_base(config["base"]["image"]["load"], image_size=config.get("preprocess", {}).get("image_size"))
    text = text_side(config["base"]["text"]["load"], base, text_base)
    check_base(config, identities(base, text), folder)
    with built_for(tensors, folder, base.image.model, text.encoder.model):
        head, fusion = head_options(config["head"])
        model = build_model(base, text, adapter_options(config["adapters"]["image"]), fusion, head)
    load_trained(model, tensors, folder)
    fabric.setup_module(model.requires_grad_(False)).eval()
    locator = Locator(model, base, text, fabric, load_shape(config.get("preprocess", {})))
    return GroundingPipeline(locator, folder.name, config.get("metrics", {}))
