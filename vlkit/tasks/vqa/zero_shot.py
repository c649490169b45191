"""What an adapter for visual question answering is compared with: its base alone, and itself without the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlkit.data.images import ImageInput, as_rgb
from vlkit.errors import UserError
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline
from vlkit.tasks.two_tower import MAX_LOGIT_SCALE
from vlkit.tasks.vqa.evaluate import Answers
from vlkit.tasks.vqa.pipeline import VqaPipeline

MOST_ANSWERS = 300
"""Answers of a vocabulary that compete: each is a text that the text tower reads anew with every question."""


class ZeroShotVqa:
    """An untrained contrastive base that answers: of all texts "question answer", the most similar one to the image.

    So CLIP is measured without training in Shen et al., How Much Can CLIP Benefit Vision-and-Language Tasks?
    (ICLR 2022), where it stays close to chance.

    Args:
        pipeline: the base without an adapter.
        vocabulary: the answers to choose from; the first :data:`MOST_ANSWERS` are used.
    """

    def __init__(self, pipeline: RetrievalPipeline, vocabulary: Sequence[str]) -> None:
        self.pipeline, self.vocabulary = pipeline, list(vocabulary[:MOST_ANSWERS])

    def answer(self, image: ImageInput, question: str, k: int = 5) -> Answers:
        """The k best answers, as (answer, probability), best first; the probabilities of all answers add up to 1.

        Raises:
            vlkit.data.images.MediaError: a file is not a readable image; names it and the reason.
            UserError: the question is blank, or ``k`` is less than 1.
        """
        if k < 1:
            raise UserError(f"k={k}: must be at least 1")
        if not question.strip():
            raise UserError("the question is blank; ask something")
        texts = self.pipeline.embed_texts([f"{question.strip()} {answer}" for answer in self.vocabulary])
        scale = math.exp(min(self.pipeline.embedder.base.logit_scale, MAX_LOGIT_SCALE))
        logits = scale * texts.astype(np.float64) @ self.pipeline.embed_images([image])[0]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")[:k]
        return [(self.vocabulary[number], float(shares[number])) for number in order]


class ImageHidden:
    """An adapter that gets a uniform image of the mean colour: what it answers, it knows from the question alone."""

    def __init__(self, pipeline: VqaPipeline) -> None:
        self.pipeline = pipeline

    def answer(self, image: ImageInput, question: str, k: int = 5) -> Answers:
        """See :meth:`vlkit.tasks.vqa.pipeline.VqaPipeline.answer`."""
        mean = self.pipeline.answerer.base.preprocess.mean
        colour = tuple(round(255 * value) for value in mean)
        return self.pipeline.answer(Image.new("RGB", as_rgb(image).size, colour), question, k)
