"""Pipeline for a model behind an API: an image and its learned prompt go out, class probabilities come back."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vlkit.data.images import ImageInput, as_rgb
from vlkit.data.transforms import image_transform
from vlkit.encoders.load import load_base
from vlkit.engine.asking import BlackBox, HttpBlackBox, HttpOptions, LocalBlackBox
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.tasks.classification.black_box import CONFIG, Prompter, load_coordinator
from vlkit.tasks.classification.evaluate import in_batches
from vlkit.tasks.classification.pipeline import ClassificationPipeline, ranked, refuse_count, zero_shot_pipeline
from vlkit.tasks.classification.prompts import Prompts

log = logging.getLogger(__name__)

BATCH = 64
"""Most images in one question."""
TOKEN = "VLKIT_BLACK_BOX_TOKEN"
"""Environment variable with the bearer token of a loaded run's service. The run's files do not choose it: a folder from
elsewhere could name any secret and any address."""


class PromptedLabeller:
    """Scores images as :class:`~vlkit.tasks.classification.evaluate.Labeller` does, by asking a black box.

    Args:
        prompter: adds the prompt.
        target: the black box.
        name: name used in messages.
    """

    def __init__(self, prompter: Prompter, target: BlackBox, name: str) -> None:
        self.prompter, self.target, self.name = prompter, target, name
        self.fabric = make_fabric("cpu")

    def scores(self, sources: Sequence[Any], open_one: Callable[[Any], Image.Image], label: str = "images") -> Tensor:
        """n sources -> logits [n, C] float32."""
        transform, prompted = image_transform(self.prompter.preprocess), self.prompter.prompted
        ask = lambda pixels: self.target.scores(prompted(pixels))  # noqa: E731
        return in_batches(ask, sources, lambda source: transform(open_one(source)), BATCH, label)

    def features(self, *args: Any, **options: Any) -> Tensor:
        """Refused.

        Raises:
            UserError: always; a black box gives scores alone.
        """
        raise UserError(f"{self.name}: the model behind the API scores its own classes alone and gives no features")


class PromptedPipeline:
    """A black box behind a trained coordinator: image -> [(class, probability), …].

    Args:
        prompter: adds the prompt.
        target: the black box.
        name: name used in messages.
    """

    def __init__(self, prompter: Prompter, target: BlackBox, name: str) -> None:
        self.labeller, self.name = PromptedLabeller(prompter, target, name), name

    @property
    def classes(self) -> list[str]:
        """The classes of the black box, in the order of its scores."""
        return list(self.labeller.prompter.classes)

    def classify(
        self, image: ImageInput, classes: Sequence[str] | None = None, k: int | None = None
    ) -> list[tuple[str, float]]:
        """Classes with their probabilities, most probable first; see :meth:`classify_many`."""
        return self.classify_many([image], classes, k)[0]

    def classify_many(
        self, images: Sequence[ImageInput], classes: Sequence[str] | None = None, k: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """Ask the black box about images with their prompts.

        Args:
            images: paths or PIL images.
            classes: None; a black box scores its own classes alone.
            k: most classes to return; None = all, whose probabilities add up to 1.

        Raises:
            UserError: ``classes`` is given, or ``k`` is below 1.
            vlkit.data.images.MediaError: a file is not a readable image; names it and the reason.
            vlkit.engine.asking.BlackBoxError: there is no usable answer.
        """
        if classes is not None:
            raise UserError(f"{self.name}: the model behind the API scores its own classes alone; leave classes out")
        refuse_count(k)  # before anything is asked, and paid for
        return ranked(self.labeller.scores(images, as_rgb), self.classes, k) if images else []


def local_box(pipeline: ClassificationPipeline, budget: int | None = None) -> LocalBlackBox:
    """A classifier in this process that gives scores alone."""
    labeller = pipeline.labeller
    device, preprocess = labeller.fabric.device, labeller.base.preprocess
    return LocalBlackBox(lambda p: labeller.model(p.to(device)), preprocess.mean, preprocess.std, budget)


def http_box(options: HttpOptions, classes: Sequence[str], budget: int | None = None) -> HttpBlackBox:
    """A classifier behind HTTP.

    Raises:
        UserError: the variable of the token is not set, or the service names other classes.
    """
    token = None
    if options.token_variable:
        token = os.environ.get(options.token_variable)
        if not token:
            raise UserError(f"--http.token_variable {options.token_variable}: is not set; export it first")
    box = HttpBlackBox(options, len(classes), budget, token=token)
    box.check_classes(classes)
    return box


def open_prompted(folder: Path, device: str = "auto", mix: float = 1.0) -> PromptedPipeline:
    """A run of ``tasks/classification/black_box.py`` as a pipeline; ``mix`` scales the prompt.

    Raises:
        UserError: the folder does not say which black box it was trained on, or that one cannot be had.
    """
    prompter = load_coordinator(folder)
    target = prompter.target
    prompter.coordinator.eps *= mix
    try:
        if "url" in target:
            token = TOKEN if os.environ.get(TOKEN) else ""
            options = HttpOptions(target["url"], gives=target["gives"], token_variable=token)
            log.info("%s: asks %s", folder, options.url)
            return PromptedPipeline(prompter, http_box(options, prompter.classes), folder.name)
        prompts = Prompts(prompter.classes, target["templates"], target["texts"])
        base = load_base(target["base"], image_size=target["image_size"])
        pipeline = zero_shot_pipeline(target["base"], prompts, device, base)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG}: does not say which model was asked (target: {error}); run "
            "tasks/classification/black_box.py with --resume once more to record it"
        ) from None
    return PromptedPipeline(prompter, local_box(pipeline), folder.name)
