"""The files of a visitor who trains: uploaded at once, or one class after the other; or demo images."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from tabs.asking import on_page
from tabs.common import FilesInput, Studio, as_html
from tabs.train_subjects import SUBJECTS, Subject
from vlkit.cli.show import visible
from vlkit.data.images.formats import IMAGE_SUFFIXES
from vlkit.drawn.kind_images import draw_kind
from vlkit.drawn.styled_scenes import UNSEEN_KINDS
from vlkit.errors import UserError
from vlkit.serving.own_classes import class_folder
from vlkit.serving.own_images import LEAST_IMAGES, MOST_IMAGES
from vlkit.serving.uploaded import Upload

BY_CLASS = "classification"
"""The task whose images can be added class by class."""
DEMO_IMAGES, DEMO_SIDE = 60, 96
DEMO_KINDS = (*UNSEEN_KINDS, "fish", "umbrella")
"""Most of them are new to the embedded base."""
DEMO_SEED = 1
"""No dataset of the demo world has it."""


class FilesGiven(NamedTuple):
    """The components for files.

    Attributes:
        files: what is uploaded at once.
        how: which files.
        by_class: the inputs for one class after the other.
        name: the class of the files.
        groups: what was added so far, as uploads in a folder for each class.
        demo: whether demo images are used instead.
    """

    files: Any
    how: gr.HTML
    by_class: gr.Column
    name: gr.Textbox
    groups: gr.State
    demo: gr.Checkbox

    @property
    def inputs(self) -> list[Any]:
        """What :func:`uploads_of` takes."""
        return [self.files, self.name, self.groups, self.demo]

    @property
    def outputs(self) -> list[Any]:
        """What :func:`shown_for` sets."""
        return [self.files, self.how, self.by_class]


def build_files(task: str) -> FilesGiven:
    """Lay out the inputs for files."""
    subject = SUBJECTS[task]
    files = FilesInput(label=files_label(subject), file_count="multiple", height=150, elem_id="train-files")
    how = gr.HTML(how_html(subject), elem_classes="lead", padding=False)
    groups = gr.State([])
    with gr.Column(visible=task == BY_CLASS) as by_class:
        with gr.Row():
            name = gr.Textbox(
                label="Class of these files", max_lines=1, placeholder="cat", elem_id="train-class", min_width=160
            )
            add = gr.Button("Add", elem_id="train-add", scale=0, min_width=90)
        added = gr.HTML(visible=False, elem_id="train-groups", elem_classes="status", padding=False)
        clear = gr.Button("Remove all", size="sm", visible=False, elem_id="train-clear", elem_classes="save")
    demo = gr.Checkbox(
        label=f"Without files of your own: use {DEMO_IMAGES} demo images", elem_id="train-demo", container=False
    )
    given = FilesGiven(files, how, by_class, name, groups, demo)
    changed = [files, name, groups, added, clear]

    def plus(files: list[Upload], name: str, groups: list[Upload]) -> tuple[Any, ...]:
        return after_adding(with_class(files, name, groups))

    on_page([add.click, name.submit], plus, [files, name, groups], changed, show_progress="hidden")
    on_page([clear.click], lambda: after_adding([]), [], changed, show_progress="hidden")
    return given


def shown_for(task: str) -> tuple[Any, ...]:
    """What :attr:`FilesGiven.outputs` show for another task."""
    subject = SUBJECTS[task]
    return gr.File(label=files_label(subject)), how_html(subject), gr.Column(visible=task == BY_CLASS)


def how_html(subject: Subject) -> str:
    """HTML: which files are read."""
    return f"<p>{as_html(subject.how)}</p>"


def files_label(subject: Subject) -> str:
    """Label of the input for files."""
    return f"{subject.files}, {LEAST_IMAGES} to {MOST_IMAGES} images"


def after_adding(groups: list[Upload]) -> tuple[Any, ...]:
    """The form once ``groups`` is all that was added: the inputs are empty again."""
    counts = Counter(upload.folder for upload in groups)
    text = ", ".join(f"<b>{as_html(name)}</b>: {count}" for name, count in counts.items())
    html = f'<p role="status">{len(groups)} images added: {text}</p>'
    return None, "", groups, gr.HTML(html, visible=bool(groups)), gr.Button(visible=bool(groups))


def with_class(files: list[Upload], name: str, groups: list[Upload]) -> list[Upload]:
    """``groups`` and the files as images of that class.

    Raises:
        UserError: no files, no usable class name, a file that is no image, one that is there already, or too many.
    """
    if not files:
        raise UserError("There are no images yet; choose those of one class.")
    folder = class_folder(name)
    there = {upload.name for upload in groups if upload.folder == folder}
    for file in files:
        if Path(file.name).suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{visible(file.name)}: is no image; here a class takes images only. Press Train to use archives and "
                "tables."
            )
        if file.name in there:
            raise UserError(f"{visible(file.name)}: an image of this name is in the class {folder} already; rename it.")
    if len(groups) + len(files) > MOST_IMAGES:
        raise UserError(f"There are {len(groups) + len(files)} images; give at most {MOST_IMAGES}.")
    return [*groups, *(Upload(file.path, file.name, folder) for file in files)]


def uploads_of(
    studio: Studio, task: str, files: list[Upload], name: str, groups: list[Upload], demo: bool
) -> list[Upload]:
    """What the visitor gave, or demo images.

    Raises:
        UserError: both; or see :func:`with_class`.
    """
    if task != BY_CLASS:
        name, groups = "", []
    if demo and (files or groups):
        raise UserError("Either upload images, or use the demo images: remove one of the two.")
    if demo:
        return demo_classes() if task == BY_CLASS else demo_captions(studio)
    # With the class typed but not added, the files are meant, too.
    return with_class(files, name, groups) if name.strip() and files else [*groups, *files]


def demo_captions(studio: Studio) -> list[Upload]:
    """Demo images with a caption each, as if a visitor had uploaded them."""
    entries = studio.album.about_images[:DEMO_IMAGES]
    table = _folder() / "captions.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        rows = [(entry.name, caption) for entry in entries for caption in entry.captions]
        csv.writer(file).writerows([("image", "caption"), *rows])
    images = [Upload(studio.album.images / entry.name, entry.name) for entry in entries]
    return [*images, Upload(table, table.name)]


def demo_classes() -> list[Upload]:
    """Demo images of :data:`DEMO_KINDS`, as if a visitor had added them class by class."""
    uploads = []
    for number in range(DEMO_IMAGES):
        kind = DEMO_KINDS[number % len(DEMO_KINDS)]
        (_folder() / "train" / kind).mkdir(parents=True, exist_ok=True)
        path = _folder() / draw_kind(("train", kind, number), DEMO_SEED, DEMO_SIDE, _folder())
        uploads.append(Upload(path, path.name, kind))
    return uploads


def _folder() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"])
