"""Pipeline for visual question answering: an image and a question -> answers with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.options import adapter_options
from vlkit.data.images import ImageInput, as_rgb
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError, listed
from vlkit.tasks.batching import Batching
from vlkit.tasks.vqa.evaluate import Answerer, Answers
from vlkit.tasks.vqa.heads import prompt_of
from vlkit.tasks.vqa.model import build_model, head_options, identity_of

IMAGES_AT_ONCE = 32
"""Most images, from several callers, in one batch."""
Images = ImageInput | tuple[ImageInput, ImageInput] | list[ImageInput]
"""What a question is about."""


class VqaPipeline:
    """Answers questions about images.

    Safe to call from several threads; calls that arrive while the model is busy are batched.

    A classifier's probability estimates the answer's VQA accuracy (with ``--head.loss bce`` they need not sum to 1); a
    decoder's is that of the written text.

    Args:
        answerer: model, bases and device.
        name: name used in messages.
        metrics: the metrics recorded in the adapter's config.
    """

    def __init__(self, answerer: Answerer, name: str, metrics: dict[str, float]) -> None:
        self.answerer, self.name, self.metrics = answerer, name, metrics
        self._together = Batching(self._answer_groups, IMAGES_AT_ONCE)

    def answer(self, image: Images, question: str, k: int = 5) -> Answers:
        """The k best answers to a question about an image, as (answer, probability), best first.

        A model that was trained on pairs (NLVR2) reads two images, ``(left, right)``.

        Raises:
            vlkit.data.images.MediaError: a file is not a readable image; names it and the reason.
            UserError: the question is blank, ``k`` is less than 1, or the model reads another number of images.
        """
        return self.answers([image], [question], k)[0]

    def answers(self, images: Sequence[Images], questions: Sequence[str], k: int = 5) -> list[Answers]:
        """:meth:`answer` for several questions, each with its image (or two).

        Consecutive questions about the same image (object or path) encode it once.

        Raises:
            ValueError: the numbers of images and questions differ.
        """
        images, questions = listed(images, "images"), listed(questions, "questions")
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images and {len(questions)} questions; give one image per question")
        if k < 1:
            raise UserError(f"k={k}: must be at least 1")
        if any(not question.strip() for question in questions):
            raise UserError("the question is blank; ask something")
        warn_of_cut_texts(self.answerer.text, questions, "questions")
        distinct: list[tuple[ImageInput, ...]] = []
        groups: list[list[str]] = []
        for given, question in zip(images, questions, strict=True):
            image = self._images_of(given)
            if not distinct or not all(map(_same, distinct[-1], image)):
                distinct.append(image)
                groups.append([])
            groups[-1].append(question)
        found = self._together([(image, group, k) for image, group in zip(distinct, groups, strict=True)])
        return [answers for group in found for answers in group]

    def _images_of(self, given: Images) -> tuple[ImageInput, ...]:
        images, expected = given if isinstance(given, tuple | list) else (given,), self.answerer.model.images
        if len(images) != expected:
            wanted = "a pair of images, (left, right)" if expected == 2 else "one image"
            raise UserError(f"{self.name}: got {len(images)} image(s) for a question; the model reads {wanted}")
        return tuple(images)

    def _answer_groups(self, asked: list[tuple[tuple[ImageInput, ...], list[str], int]]) -> list[list[Answers]]:
        """Answers to the questions of each image; a decoder's beam size depends on ``k``, so each ``k`` runs alone."""
        found: dict[int, list[Answers]] = {}
        for k in {k for *_, k in asked}:
            rows = [row for row, (*_, own) in enumerate(asked) if own == k]
            images, groups = [asked[row][0] for row in rows], [asked[row][1] for row in rows]
            found |= zip(rows, self.answerer.answer(images, groups, as_rgb, k), strict=True)
        return [found[row] for row in range(len(asked))]


def _same(one: ImageInput, other: ImageInput) -> bool:
    return one is other or (isinstance(one, str | Path) and one == other)


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> VqaPipeline:
    """Attach a saved adapter to its bases; see :func:`vlkit.tasks.load.load`."""
    image = config["base"]["image"]
    base = base or load_base(image["load"], image_size=image.get("image_size"))
    with built_for(tensors, folder):
        head, fusion, vocabulary, images = head_options(config["head"])
    text = text_side(config["base"]["text"]["load"], base, text_base, prompt_of(head))
    check_base(config, identity_of(base, text, head), folder)
    with built_for(tensors, folder, base.image.model, text.encoder.model):
        adapter = adapter_options(config["adapters"]["image"])
        model = build_model(base, text, adapter, head, fusion, len(vocabulary), images)
    load_trained(model, tensors, folder)
    fabric.setup_module(model.requires_grad_(False)).eval()
    answerer = Answerer(model, base, text, head, vocabulary, fabric)
    return VqaPipeline(answerer, folder.name, config.get("metrics", {}))
