"""Compare, for search: what two models find for one query."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tabs.asking import on_asking
from tabs.common import Studio, endpoint
from tabs.comparing import BATCH, PREDICTING, SIDES, models, sides, tell_facts
from tabs.search import DEMO_QUERIES, GALLERY, QUERIES, _shots, find
from vlkit.serving import check_text
from vlkit.serving.compared import Compared

TASK, RESULTS = "retrieval", 6


def build(studio: Studio, compared: Compared, opened: list[Any]) -> None:
    """Lay out the part; call it within a column that comes into sight with the events ``opened``."""
    queries = QUERIES if studio.own_images else DEMO_QUERIES
    with gr.Row():
        text = gr.Textbox(queries[0], label="Query", max_lines=2, scale=5, elem_id="compare-text", min_width=220)
        button = gr.Button("Compare", variant="primary", scale=0, min_width=120, elem_id="compare-button")

    def gallery(number: int, elem_id: str) -> gr.Gallery:
        label = f"Results, {SIDES[number]}"
        return gr.Gallery(label=label, elem_classes="shots", elem_id=elem_id, **GALLERY)

    both = sides(compared, TASK, "compare", gallery)
    examples = gr.Examples(queries, text, api_visibility="private", label="Try")

    def found(text: str, *names: str) -> list[Any]:
        query = check_text(text, "query")
        models(compared, TASK, *names)
        return [find(studio, query, RESULTS, [name])[name] for name in names]

    def show(text: str, left: str, right: str) -> list[Any]:
        rows = zip((left, right), found(text, left, right), strict=True)
        return [gr.Gallery(_shots(hits), label=name) for name, hits in rows]

    def compare(text: str, left: str, right: str) -> list[dict[str, Any]]:
        """Two models on one query: [{"model", "results", "trained_parameters", "saved_bytes"}], left and right.

        Results are those of search.
        """
        return [
            {
                "model": name,
                "results": [{"picture": hit.name, "score": round(hit.score, 6)} for hit in hits],
                **compared.costs(TASK, name, BATCH),
            }
            for name, hits in zip((left, right), found(text, left, right), strict=True)
        ]

    inputs = [text, *both.choices]
    by, after = [button.click, text.submit, *both.changes], [examples.load_input_event]
    on_asking(show, inputs, both.results, by, after, opening=lambda: studio.library.finished)
    tell_facts(compared, TASK, both, opened)
    endpoint("compare", compare, inputs, **PREDICTING)
