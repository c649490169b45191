"""A visitor's own images: many files or a folder, searched while they are still being added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from tabs.asking import now, on_page
from tabs.common import Studio
from vlkit.cli.show import visible
from vlkit.errors import UserError
from vlkit.serving import AddedImages, open_upload

MOST_ADDED = 500
ADDED_AT_ONCE = 8
"""Added images until searches see them."""


def build_adding(
    studio: Studio,
    text: gr.Textbox,
    asked: gr.State,
    added: gr.State,
    status: gr.HTML,
    say: Callable[[AddedImages, list[str]], str],
) -> None:
    """Lay out the inputs for a visitor's own images.

    Args:
        text, asked: the query, and what asks for its answer; it is repeated while images are being added.
        added: the visitor's images.
        status: gets what ``say`` answers to the images added so far and to notes on them.
    """
    with gr.Accordion("Add your own images", open=False):
        files = gr.File(label="Drop many images here", file_count="multiple", height=140, elem_id="add-files")
        folder = gr.UploadButton("Choose a folder", file_count="directory", size="sm", elem_id="add-folder")
        gr.Markdown(
            "They are kept in memory during your visit, found only by your searches, and deleted afterwards.",
            elem_classes="lead",
        )

    def add(paths: list[str] | None, added: AddedImages, text: str) -> Iterator[tuple[Any, ...]]:
        """Add the images, and now and then search again, among those that are ready."""
        refused, paths = [], paths or []
        for number, path in enumerate(paths, start=1):
            name = visible(Path(path).name)
            try:
                if len(added.names) >= MOST_ADDED:
                    raise UserError(f"{name}: at most {MOST_ADDED} images can be added.")
                added = added.plus(name, open_upload(path), studio.models.retrieval)
            except UserError as error:
                refused.append(str(error))
            last = number == len(paths)
            if last or number % ADDED_AT_ONCE == 0:
                notes = refused if last else [f"adding your images, {number} of {len(paths)} done", *refused]
                yield added, say(added, notes), now() if text.strip() else gr.skip()

    for source in (files, folder):
        on_page([source.upload], add, [source, added, text], [added, status, asked], concurrency_limit=2)
