"""What a visitor can train in the page: one entry for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tabs.common import Studio


@dataclass(frozen=True)
class Subject:
    """A task that can be trained, and how the page speaks of it.

    Attributes:
        choice: its name in the choice of what to learn.
        files: label of the input for files.
        how: which files.
        tab: the tab that uses the result.
        use: text of the button that leads there.
        opening: what is done with a finished adapter before it can be used.
        counted: what to add to the count of trained parameters before the files are known.
        predicted: in which way the predicted step differs from the run.
        score: what the metrics are.
        metrics: metric -> its name.
    """

    choice: str
    files: str
    how: str
    tab: str
    use: str
    opening: str
    counted: str
    predicted: str
    score: str
    metrics: Mapping[str, str]


SUBJECTS = {
    "retrieval": Subject(
        choice="Search (image + caption)",
        files="Images and captions",
        how="A zip archive, or the files: images, and their captions in a CSV (columns image and caption), in a text "
        "file beside each image, or as the file names (a_red_car.jpg).",
        tab="Search",
        use="Search with it",
        opening="Indexing the library with it",
        counted="",
        predicted="The prediction takes texts of full length.",
        score="Recall",
        metrics={"i2t_r1": "image to text, R@1", "t2i_r1": "text to image, R@1"},
    ),
    "classification": Subject(
        choice="Classes (image + class)",
        files="Images and classes",
        how="Images of one class at a time, with the class typed below; or images and a CSV (columns image and label); "
        "or a zip archive with a folder for each class.",
        tab="Classify",
        use="Classify with it",
        opening="Loading it",
        counted=" (with a head for 100 classes)",
        predicted="The prediction takes a head for 100 classes.",
        score="Accuracy",
        metrics={"top1": "all images", "mean_per_class": "mean of the classes"},
    ),
}


def bases_of(studio: Studio, task: str) -> list[str]:
    """Bases, by their ``--base`` name, of the loaded models that an adapter of the task would stand beside."""
    if task == "retrieval":
        configs = studio.models.configs.get("retrieval", {}).values()
        names = [config["base"]["image"]["load"] for config in configs]
    else:
        bases = [model.labeller.base for model in studio.models.classifiers.values()]
        names = [base.name for base in bases if base.joint_dim is None]  # its class vectors start as prompts
    return list(dict.fromkeys(names))


def subjects_of(studio: Studio) -> dict[str, Subject]:
    """The tasks that this demo serves and can train."""
    return {task: subject for task, subject in SUBJECTS.items() if bases_of(studio, task)}
