"""Compare: two models side by side on one query, with what each has trained and what its training saves; and a place
for adapters of visitors.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from tabs.arrivals import arrivals
from tabs.asking import on_asking, on_page
from tabs.common import (
    FilesInput,
    ModelChoice,
    Studio,
    as_html,
    endpoint,
    lead,
)
from tabs.search import DEMO_QUERIES, GALLERY, QUERIES, _shots, find
from vlkit.adapters.options import adapter_options
from vlkit.errors import UserError
from vlkit.serving import check_text
from vlkit.serving.costs import predicted_step
from vlkit.serving.uploaded import Upload

BATCH, RESULTS = 32, 6
SIDES = ("left", "right")


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab; call it within ``tab``."""
    lead("Two models on one query: what each finds, and what it took to train it.")
    queries = QUERIES if studio.own_images else DEMO_QUERIES
    with gr.Row():
        text = gr.Textbox(queries[0], label="Query", max_lines=2, scale=5, elem_id="compare-text", min_width=220)
        button = gr.Button("Compare", variant="primary", scale=0, min_width=120, elem_id="compare-button")
    choices, galleries, facts = [], [], []
    with gr.Row():
        for number, side in enumerate(SIDES):
            with gr.Column(min_width=300):
                choice = ModelChoice(
                    list(studio.models.retrieval),
                    value=default(studio)[number],
                    label=f"Model on the {side}",
                    interactive=True,
                    elem_id=f"compare-{side}",
                )
                choices.append(choice)
                gallery = gr.Gallery(
                    label=f"Results, {side}", elem_classes="shots", elem_id=f"compare-{side}-results", **GALLERY
                )
                galleries.append(gallery)
                facts.append(gr.HTML(elem_id=f"compare-{side}-facts"))
    for number, choice in enumerate(choices):
        arrivals().follow(
            choice, lambda number=number: gr.Dropdown(list(studio.models.retrieval), value=default(studio)[number])
        )
    examples = gr.Examples(queries, text, api_visibility="private", label="Try")
    if studio.adapters is None:
        gr.Markdown("Adapters can be uploaded where the demo is not open to everybody.", elem_classes="lead")
    else:
        _build_upload(studio)

    def found(text: str, left: str, right: str) -> list[Any]:
        query = check_text(text, "query")
        rows = []
        for name in (left, right):
            if name not in studio.models.retrieval:
                raise UserError(f"There is no model {name!r}; there are {', '.join(studio.models.retrieval)}.")
            rows.append(find(studio, query, RESULTS, [name])[name])
        return rows

    def show(text: str, left: str, right: str) -> list[Any]:
        return [
            gr.Gallery(_shots(hits), label=name)
            for name, hits in zip((left, right), found(text, left, right), strict=True)
        ]

    def tell(left: str, right: str) -> list[str]:
        return [facts_html(costs_of(studio, name)) for name in (left, right)]

    def compare(text: str, left: str, right: str) -> list[dict[str, Any]]:
        """Two models on one query: [{"model", "results", "trained_parameters", "saved_bytes"}], left and right."""
        return [
            {
                "model": name,
                "results": [{"picture": hit.name, "score": round(hit.score, 6)} for hit in hits],
                **costs_of(studio, name),
            }
            for name, hits in zip((left, right), found(text, left, right), strict=True)
        ]

    inputs = [text, *choices]
    # Predicting takes seconds, so the results do not wait for it.
    predicted = {"concurrency_limit": 1, "concurrency_id": "predicted step", "show_progress": "hidden"}
    by, after = [button.click, text.submit, *(choice.change for choice in choices)], [examples.load_input_event]
    on_asking(show, inputs, galleries, by, after, opening=lambda: studio.library.finished)
    on_page([tab.select, *(choice.change for choice in choices)], tell, choices, facts, **predicted)
    endpoint("compare", compare, [text, *choices], **{k: v for k, v in predicted.items() if k != "show_progress"})


def default(studio: Studio) -> tuple[str, str]:
    """The models to begin with: the newest adapter, and its base without one (else the adapter before it)."""
    adapters, frozen = list(studio.models.adapters), list(studio.models.zero_shot)
    newest = adapters[-1]
    base = f"zero-shot {studio.models.configs['retrieval'][newest]['base']['image']['load']}"
    return newest, base if base in frozen else adapters[-2 if len(adapters) > 1 else -1]


def costs_of(studio: Studio, name: str) -> dict[str, Any]:
    """Trained parameters of a search model, and the saved activations of a step of :data:`BATCH` pairs, in bytes."""
    config = studio.models.configs["retrieval"].get(name)
    if config is None:
        return {"base": name.removeprefix("zero-shot "), "method": None, "trained_parameters": 0, "saved_bytes": 0}
    base, options = config["base"]["image"]["load"], adapter_options(config["adapters"]["image"])
    return {
        "base": base,
        "method": options.kind,
        "trained_parameters": studio.models.trained["retrieval"][name],
        "saved_bytes": predicted_step(base, options, BATCH).saved_bytes,
    }


def facts_html(costs: dict[str, Any]) -> str:
    """HTML of what a model took to train."""
    if costs["method"] is None:
        return f"<p>The base <code>{as_html(costs['base'])}</code> as it is: nothing was trained.</p>"
    return (
        f"<p><b>{costs['trained_parameters']:,}</b> parameters trained ({as_html(costs['method'])} on "
        f"<code>{as_html(costs['base'])}</code>); a step of {BATCH} pairs has "
        f"<b>{costs['saved_bytes'] / 2**20:,.1f} MiB</b> of saved activations (predicted).</p>"
    )


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
