"""Classification: the model, and its entry in the adapter config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from vlkit.adapters.facts import MethodOptions
from vlkit.encoders.bases import ClipBase
from vlkit.errors import UserError
from vlkit.tasks.classification.heads import CLASSIFIERS, ClassifierOptions, ZeroshotOptions, make_head
from vlkit.tasks.classification.prompts import Prompts, require_joint_space


class Classifier(nn.Module):
    """An adapted image tower and a head on its pooled embedding.

    Attributes:
        image: the tower.
        head: features [B, E] -> scores [B, C].
    """

    def __init__(self, image: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.image, self.head = image, head

    def trains_by_steps(self, head: ClassifierOptions) -> bool:
        """Whether anything is left for training steps: a zero-shot head on the frozen base has only a scale."""
        adapts = any(parameter.requires_grad for parameter in self.image.parameters())
        return adapts or not (head.closed_form or isinstance(head, ZeroshotOptions))

    def features(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E], the pooled embedding, not normalised."""
        return self.image(pixels).pooled

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> class scores [B, C] float32, logits."""
        return self.head(self.features(pixels)).float()


def build_model(
    base: ClipBase,
    adapter: MethodOptions,
    head: ClassifierOptions,
    classes: int,
    weights: Tensor | None = None,
    count: int = 0,
) -> Classifier:
    """Apply an adaptation method to the image tower, and add a head. The text tower stays as it is.

    Args:
        base: the loaded base; its image tower becomes part of the model.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: options of one of :data:`vlkit.tasks.classification.heads.CLASSIFIERS`.
        classes: number of classes C.
        weights: class vectors of the prompts, [C, E]; None = they are loaded later, or the head reads none.
        count: number of training images (head cache).

    Raises:
        UserError: the method does not fit the tower, the base has no joint space for the prompts, or nothing would
            train the adapter.
    """
    if head.reads_prompts:
        require_joint_space(base)
    image = adapter.build(base.image, "pooled")
    if head.closed_form and any(p.requires_grad for p in image.parameters()):
        raise UserError(
            f"--head.kind {head.kind}: is computed without training steps, so --adapter.kind {adapter.kind} would stay "
            "untrained; use --adapter.kind linear, or a head that trains (text, zeroshot, linear, cache with "
            "--head.finetune true)"
        )
    return Classifier(image, make_head(head, base.image.out_dim, classes, weights, base.logit_scale, count))


def identity_of(base: ClipBase) -> dict[str, Any]:
    """Identity of the towers, and the name they are loaded by; the text tower reads class names."""
    return {tower: {**identity, "load": base.name} for tower, identity in base.identity.items()}


def adapter_config(
    base: ClipBase,
    adapter: MethodOptions,
    head: ClassifierOptions,
    prompts: Prompts,
    count: int,
    image_size: int | None,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same base."""
    texts = {"classes": list(prompts.classes), "templates": list(prompts.templates), "texts": prompts.own}
    return {
        "task": "classification",
        "base": identity_of(base),
        "adapters": {"image": asdict(adapter)},
        "head": {**asdict(head), **texts, "count": count},
        "preprocess": {**base.preprocess.to_dict(), "image_size": image_size},
        "metrics": metrics,
    }


def head_options(values: dict[str, Any]) -> tuple[ClassifierOptions, Prompts, int]:
    """Options of the head, the prompts, and the number of training images, from an adapter's config.

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    given = dict(values)
    try:
        prompts = Prompts(given.pop("classes"), given.pop("templates"), given.pop("texts"))
        count = given.pop("count")
        own = prompts.own
        lists = [prompts.classes, prompts.templates, *(own.values() if isinstance(own, dict) else [None])]
        if not all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in lists):
            raise TypeError("classes, templates and texts are not lists of texts")
        return CLASSIFIERS[given["kind"]](**given), prompts, count
    except (KeyError, TypeError) as error:
        raise UserError(f"vlkit_adapter.json: the options of 'head' do not fit ({error}); update vlkit") from None
