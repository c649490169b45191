"""A visitor's own images: many files or a folder, searched while they are still being added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from tabs.common import Studio, on_page
from vlkit.cli.show import visible
from vlkit.errors import UserError
from vlkit.serving import AddedImages, open_upload

MOST_ADDED = 500
ADDED_AT_ONCE = 8
"""Added images until searches see them."""


class SearchInPage(NamedTuple):
    """The handler of the search by words, its inputs before the added images, and its outputs."""

    search: Callable[..., Any]
    inputs: list[Any]
    outputs: list[Any]


def build_adding(
    studio: Studio, page: SearchInPage, added: gr.State, status: gr.HTML, say: Callable[[AddedImages, list[str]], str]
) -> None:
    """Lay out the inputs for a visitor's own images.

    Args:
        page: the search, which is repeated while images are being added.
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

    def add(paths: list[str] | None, added: AddedImages, *query: Any) -> Iterator[tuple[Any, ...]]:
        """Add the images, and now and then show what the search finds among those that are ready."""
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
                found = page.search(*query, added) if query[0].strip() else [gr.skip() for _ in page.outputs]
                yield added, say(added, notes), *found

    inputs, outputs = [added, *page.inputs], [added, status, *page.outputs]
    for source in (files, folder):
        on_page([source.upload], add, [source, *inputs], outputs, concurrency_limit=2)
