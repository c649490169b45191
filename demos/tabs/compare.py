"""Compare: two models of a task side by side on one input, with what each took to train; and a place for adapters of
visitors.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from tabs import compare_ask, compare_ground, compare_search
from tabs.arrivals import arrivals
from tabs.asking import now, on_page
from tabs.common import FilesInput, Studio, as_html, lead
from vlkit.serving.compared import Compared
from vlkit.serving.uploaded import Upload

PARTS = {"Search": compare_search, "Ask": compare_ask, "Ground": compare_ground}
"""The name of the tab that answers the same inputs with one model -> the part that compares two."""


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab; call it within ``tab``."""
    lead("Two models on one input: what each answers, and what it took to train it.")
    compared = Compared(studio.models)
    there = [name for name, part in PARTS.items() if studio.models.by_task.get(part.TASK)]
    task = gr.Radio(there, value=there[0], label="Task", visible=len(there) > 1, elem_id="compare-task")
    columns, opened = [], []
    for name in there:
        with gr.Column(visible=name == there[0]) as column:
            columns.append(column)
            opened.append(gr.State(0))
            # What a training step saves takes seconds to predict, so it waits until it is in sight.
            events = [opened[-1].change, *([tab.select] if name == there[0] else [])]
            PARTS[name].build(studio, compared, events)

    def choose(chosen: str) -> list[Any]:
        shown = [gr.Column(visible=name == chosen) for name in there]
        return [*shown, *(now() if name == chosen else gr.skip() for name in there)]

    on_page([task.input], choose, [task], [*columns, *opened], show_progress="hidden")
    if studio.adapters is None:
        gr.Markdown("Adapters can be uploaded where the demo is not open to everybody.", elem_classes="lead")
    else:
        _build_upload(studio)


def _build_upload(studio: Studio) -> None:
    adapters = studio.adapters
    assert adapters is not None
    arrived = gr.State("")
    arrivals().announce(arrived)
    with gr.Accordion("Add an adapter of your own", open=False):
        files = FilesInput(
            label="A zip of an adapter folder, or its two files",
            file_count="multiple",
            file_types=[".zip", ".json", ".safetensors"],
            height=140,
            elem_id="adapter-files",
        )
        button = gr.Button("Add", elem_id="adapter-add")
        said = gr.HTML(elem_id="adapter-said", elem_classes="status")

    def add(uploads: list[Upload], progress: gr.Progress = gr.Progress()) -> tuple[str, Any, Any]:  # noqa: B008 - how Gradio hands it in
        opened = adapters.upload(uploads, lambda done, total: progress((done, total), desc="index the library"))
        task = opened.task.replace("_", " ")
        text = f"<b>{as_html(opened.name)}</b> ({as_html(task)}) was added; choose it as the model of its tab."
        return f'<p role="status">{text}</p>', opened.name, None

    on_page([button.click], add, [files], [said, arrived, files], concurrency_limit=1)
