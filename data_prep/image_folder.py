"""Images with classes -> a prepared dataset for classification.

python data_prep/image_folder.py --folder DIR --output data/mine                        # a folder per class
python data_prep/image_folder.py --folder DIR --labels labels.csv --output data/mine    # image,label[,split]
python data_prep/image_folder.py --folder DIR --split_file split_zhou_OxfordPets.json --output data/pets
python data_prep/image_folder.py --folder DIR --lists DIR --classes names.txt --output data/vtab
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import visible
from vlkit.data.sources import class_splits, image_folder
from vlkit.data.sources.labelled import Labelled, read_classes, read_templates
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError


@dataclass
class Config:
    """Prepare images with classes for classification."""

    folder: Path
    """Folder with the images. Without the next three flags: one folder per class in it, or train/CLASS, val/CLASS and
    test/CLASS."""
    output: Path
    """Folder to write the prepared dataset to."""
    labels: Path | None = None
    """CSV or TSV with a header: image, label and optionally split; image paths are relative to --folder."""
    split_file: Path | None = None
    """Split file of CoOp and BlackVIP (split_zhou_*.json)."""
    lists: list[Path] = field(default_factory=list)
    """List files of VTAB-1k (train800.txt, val200.txt, test.txt: path and class number a line), or their folder."""
    classes: Path | None = None
    """Text file with one class name per line, in the order of the class numbers; default: the names found, sorted."""
    templates: Path | None = None
    """Text file with one class prompt per line, such as "a photo of a {}."; default: decided by the training script."""
    val: float = 0.1
    """Share of each class for validation, if the input has no splits."""
    test: float = 0.2
    """Share of each class for testing, if the input has no splits."""
    seed: int = 0
    """Seed of these splits."""
    partial: bool = False
    """Skip missing images, and list them in missing.txt, instead of stopping."""

    def __post_init__(self) -> None:
        given = [f"--{flag}" for flag in ("labels", "split_file", "lists") if getattr(self, flag)]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: give one of them")
        if self.split_file and self.classes:
            raise UserError("--classes: a split file names its classes itself; omit --classes")


def main(config: Config) -> None:
    source = read(config).source(read_templates(config.templates) if config.templates else None)
    print(prepare(source, config.output, config.folder, partial=config.partial).summary())


def read(config: Config) -> Labelled:
    """The images and their classes, from the kind of input that was given."""
    classes = read_classes(config.classes) if config.classes else None
    if config.split_file:
        return class_splits.read_split_file(config.split_file)
    if config.lists:
        return class_splits.read_lists(config.lists, visible(config.folder.resolve().name), classes)
    shares = {"classes": classes, "val": config.val, "test": config.test, "seed": config.seed}
    if config.labels:
        return image_folder.read_table(config.labels, config.folder, **shares)
    return image_folder.read_folder(config.folder, **shares)


if __name__ == "__main__":
    run(main, Config)
