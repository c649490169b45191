"""Images with one class each: collected from any kind of file, checked, and turned into a :class:`Source`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError, some
from vlkit.files import read_text, text_lines

TASK = "classification"
SPLITS = ("train", "val", "test")
PLACEHOLDER = "{}"


@dataclass
class Labelled:
    """Images and their classes, in the order of the files.

    Attributes:
        name: name of the dataset.
        inputs: JSON value for ``source`` in ``dataset.json``.
        classes: names of the classes, in the order of the scores.
        notes: notes for the user.
    """

    name: str
    inputs: Any
    classes: list[str]
    notes: list[str] = field(default_factory=list)
    _splits: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    _repeated: int = 0

    def add(self, split: str, image: str, label: str, where: str) -> None:
        """Add an image; ``where`` names its place in the file for messages.

        Raises:
            UserError: the same image has another class in this or another split.
        """
        for other, images in self._splits.items():
            known = images.get(image)
            if known is not None and known[0] != label:
                raise UserError(
                    f'{where}: {image} has class "{label}" here and "{known[0]}" in {other} ({known[1]}); '
                    "an image has one class, remove one of the two"
                )
        images = self._splits.setdefault(split, {})
        if image in images:
            self._repeated += 1
        else:
            images[image] = label, where

    def source(self, templates: Sequence[str] | None = None) -> Source:
        """The records of all splits, and notes on what deserves a look.

        Args:
            templates: class prompts for ``dataset.json``; None = none.

        Raises:
            UserError: there is no image at all.
        """
        if not any(self._splits.values()):
            raise UserError(f"{self.name}: no image with a class was found")
        order = sorted(self._splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
        splits = {
            split: [
                {"id": f"{self.name}/{image}", "image": image, "label": label}
                for image, (label, _) in self._splits[split].items()
            ]
            for split in order
        }
        extra = {"classes": self.classes, **({"templates": list(templates)} if templates else {})}
        source = Source(self.name, TASK, splits, self.inputs, extra=extra)
        source.notes = [*self.notes, *self._notes(splits)]
        return source

    def _notes(self, splits: dict[str, list[dict[str, Any]]]) -> list[str]:
        notes = [f"{len(self.classes)} classes: {some(self.classes, 8)}"]
        if self._repeated:
            notes.append(f"images listed twice in a split with the same class, counted once: {self._repeated}")
        counts = {split: Counter(record["label"] for record in records) for split, records in splits.items()}
        used = set().union(*counts.values())
        if unused := [name for name in self.classes if name not in used]:
            notes.append(f"classes without any image: {some(unused)}")
        train = counts.get("train")
        if train is None:
            return [*notes, 'there is no split "train"; give --data.train to the training script']
        if untrained := [name for name in self.classes if name in used and name not in train]:
            notes.append(f"classes without a training image: {some(untrained)}")
        if single := [name for name, count in train.items() if count == 1]:
            notes.append(f"classes with a single training image: {some(single)}")
        few, many = min(train.values()), max(train.values())
        if many >= 10 * few:
            notes.append(f"classes are unbalanced: {few} to {many} training images; see --loss.balance")
        inside = {record["image"] for record in splits["train"]}
        for split in (name for name in splits if name not in ("train", "trainval")):
            if both := [record["image"] for record in splits[split] if record["image"] in inside]:
                notes.append(f"images both in train and in {split} ({len(both)}): {some(both, 3)}")
        return notes


def read_classes(path: str | Path) -> list[str]:
    """Class names from a text file, one per line, in the order of their numbers.

    Raises:
        UserError: the file cannot be read, is empty, or holds a name twice or a blank line between names.
    """
    lines = text_lines(read_text(path, "give a text file with one class name per line").strip("\r\n"))
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            raise UserError(f"{path}:{number}: is blank; write one class name per line")
        if name in names:
            raise UserError(f'{path}:{number}: class "{name}" is already in line {names[name]}; give each one name')
        names[name] = number
    if not names:
        raise UserError(f"{path}: holds no class name; write one per line")
    return list(names)


def read_templates(path: str | Path) -> list[str]:
    """Class prompts from a text file, one per line, each with ``{}`` at the place of the class name.

    Raises:
        UserError: the file cannot be read, is empty, or a line has no ``{}``.
    """
    lines = text_lines(read_text(path, "give a text file with one template per line"))
    templates = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if PLACEHOLDER not in line:
            raise UserError(f"{path}:{number}: {line.strip()[:60]!r} has no {{}}; write it where the class name goes")
        templates.append(line.strip())
    if not templates:
        raise UserError(f'{path}: holds no template; write one per line, such as "a photo of a {{}}."')
    return templates


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names, sorted: numbers by value, before other texts."""
    return sorted(dict.fromkeys(names), key=lambda name: (0, int(name), "") if _is_number(name) else (1, 0, name))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 18
