"""Caption: sentences about an image, with their probabilities; without a captioner, the best of known captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.arrivals import picker
from tabs.asking import on_asking
from tabs.common import Studio, bars, chosen, endpoint, image_input, lead, no_model
from tabs.examples import worked
from tabs.search import given
from vlkit.serving import check_count, rank_texts

MOST_CAPTIONS = 5


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    written = studio.models.by_task.get("captioning", {})
    models: dict[str, Any] = written or dict(list(studio.models.retrieval.items())[:1])
    rows = [[str(studio.album.images / entry.name)] for entry in studio.album.about_images]
    known = [entry.captions[0] for entry in studio.album.about_images]
    if written:
        lead("Describe an image in a sentence. Each bar is the probability that the model gives to the whole sentence.")
    else:
        lead("Describe an image: the best of the captions of the demo images, by cosine similarity.")

    def captions(image: Image.Image | None, count: float, model: str | None) -> list[tuple[str, float]]:
        k = check_count(count, "number of captions", MOST_CAPTIONS)
        pipeline = chosen(models, model)
        return pipeline.captions(given(image), k) if written else rank_texts(pipeline, given(image), known)[:k]

    def show(image: Image.Image | None, count: float, model: str | None) -> str:
        form = "{:.1%}" if written else "{:.3f}"
        return bars(captions(image, count, model), form.format, label="Captions, best first")

    with gr.Row():
        image = image_input("Image", value=rows[0][0], height=320, elem_id="caption-image")
        with gr.Column():
            count = gr.Slider(1, MOST_CAPTIONS, value=3, step=1, label="Captions", elem_id="caption-count")
            model = picker(models)
            button = gr.Button("Describe", variant="primary", elem_id="caption-button")
            result = gr.HTML(worked(studio, "caption", show, Path(rows[0][0]), 3, None), elem_id="caption-result")
    examples = gr.Examples(rows[:5], [image], api_visibility="private", label="Try")

    def caption(image: Image.Image | None, count: int = 1, model: str | None = None) -> list[dict[str, Any]]:
        """Captions of an image: [{"caption", "probability"}], best first."""
        return [{"caption": text, "probability": float(share)} for text, share in captions(image, count, model)]

    inputs = [image, count, model]
    on_asking(show, inputs, [result], by=[button.click], after=[examples.load_input_event])
    if written:
        endpoint("caption", caption, inputs)
    else:
        no_model("captioning", "new sentences")
