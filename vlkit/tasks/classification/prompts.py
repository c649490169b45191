"""Class prompts: texts about each class, and the classifier that a text tower makes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.linear import LinearOptions
from vlkit.data.manifest import Dataset
from vlkit.data.sources.labelled import PLACEHOLDER, read_templates
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.errors import UserError, listed, some
from vlkit.files import read_json

BATCH = 64
GENERAL = ("a photo of a {}.", "a photo of the {}.", "an image of a {}.", "{}")
"""Templates of a dataset without its own."""
PUBLISHED = {
    **dict.fromkeys(("oxfordpets", "pets"), "a photo of a {}, a type of pet."),
    **dict.fromkeys(("oxfordflowers", "flowers102", "flowers"), "a photo of a {}, a type of flower."),
    **dict.fromkeys(("fgvcaircraft", "aircraft"), "a photo of a {}, a type of aircraft."),
    **dict.fromkeys(("food101", "food"), "a photo of {}, a type of food."),
    **dict.fromkeys(("describabletextures", "dtd"), "{} texture."),
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
    **dict.fromkeys(("stanfordcars", "cars", "sun397", "caltech101", "imagenet"), "a photo of a {}."),
    **dict.fromkeys(("svhn", "resisc45"), "This is a photo of a {}"),
    "clevr": "This is a photo of {} objects",
    **dict.fromkeys(("biasedmnist", "locmnist"), "This is a photo of {}"),
}
"""Dataset (letters and digits of its name, in lower case) -> the one template of the published protocol."""


@dataclass
class PromptOptions:
    """Texts about the classes, for heads that read them."""

    templates: list[str] = field(default_factory=list)
    """Texts with {} at the place of the class name; their embeddings are averaged. Default: "templates" in
    dataset.json, else the published one of a known dataset, else four general ones."""
    file: Path | None = None
    """Text file with one template per line, or JSON with class name -> list of texts."""

    def __post_init__(self) -> None:
        for template in self.templates:
            if PLACEHOLDER not in template:
                raise UserError(f"--prompts.templates {template!r}: has no {{}}; write it where the class name goes")
        if self.templates and self.file:
            raise UserError("--prompts.templates and --prompts.file: give one of them")


@dataclass(frozen=True)
class Prompts:
    """The texts of each class.

    Attributes:
        classes: class names, in the order of the scores.
        templates: texts with ``{}`` at the place of the class name.
        own: class -> its own texts, instead of the templates.
    """

    classes: Sequence[str]
    templates: Sequence[str]
    own: dict[str, list[str]] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """The texts of a class; ``_`` in its name becomes a blank."""
        spoken = name.replace("_", " ")
        return self.own.get(name) or [template.replace(PLACEHOLDER, spoken) for template in self.templates]

    def of(self, classes: Sequence[str]) -> Prompts:
        """The same templates for other classes.

        Raises:
            UserError: no class, a blank name, or one that is there twice.
        """
        names = [name.strip() for name in listed(classes, "class names")]
        if not names or not all(names):
            raise UserError("class names: give at least one, and none that is blank")
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"class names: {some(sorted(twice))} given twice; give each class one name")
        return Prompts(names, self.templates, {name: own for name, own in self.own.items() if name in names})


def prompts_of(dataset: Dataset, options: PromptOptions) -> Prompts:
    """The prompts of a dataset, from the flags, its ``dataset.json``, or its name.

    Raises:
        UserError: the file cannot be read, or names a class that the dataset does not have.
    """
    classes, own = dataset.extra["classes"], {}
    templates: Sequence[str] = options.templates
    if options.file is not None and options.file.suffix.lower() == ".json":
        own = _read_own(options.file, classes)
    elif options.file is not None:
        templates = read_templates(options.file)
    return Prompts(classes, list(templates or dataset.extra.get("templates") or default_templates(dataset.name)), own)


def default_templates(name: str) -> tuple[str, ...]:
    """The published template of a known dataset, else :data:`GENERAL`."""
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    return (PUBLISHED[short],) if short in PUBLISHED else GENERAL


def _read_own(path: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    content: Any = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: is not a JSON object; write {{"class name": ["text", …]}}')
    for name, texts in content.items():
        if name not in classes:
            raise UserError(f'{path}: "{name}" is no class of the dataset; its classes are {some(list(classes))}')
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise UserError(f'{path}: the texts of "{name}" are not a list of texts; write ["text", …]')
    return content


@torch.no_grad()
def class_weights(base: ClipBase, prompts: Prompts, fabric: Fabric) -> Tensor:
    """The classifier of the prompts: per class the unit mean of the unit embeddings of its texts.

    Args:
        base: its text tower is moved to the device and stays frozen.
        prompts: the texts.
        fabric: device and precision.

    Returns:
        [C, E] float32 on the CPU, unit rows.

    Raises:
        UserError: the base has no joint space of images and texts.
    """
    require_joint_space(base)
    texts = [text for name in prompts.classes for text in prompts.texts(name)]
    counts = [len(prompts.texts(name)) for name in prompts.classes]
    warn_of_cut_texts(base.tokenize, texts, "class prompts")
    tower = LinearOptions().build(base.text).to(fabric.device).eval()
    found = []
    for start in range(0, len(texts), BATCH):
        ids = base.text.trim(base.tokenize(texts[start : start + BATCH])).to(fabric.device)
        with fabric.autocast():
            found.append(F.normalize(tower(ids).pooled.float(), dim=-1).cpu())
    means = torch.stack([own.mean(0) for own in torch.cat(found).split(counts)])
    return F.normalize(means, dim=-1)


def require_joint_space(base: ClipBase) -> None:
    """Raise :class:`UserError` if class prompts mean nothing to the base: a pair of encoders that never met."""
    if base.joint_dim is not None:
        raise UserError(
            f"base {base.name}: a pair has no joint space of images and texts, so class prompts cannot classify; "
            "use --head.kind linear or ridge"
        )
