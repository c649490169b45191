"""Classify: the class of an image, among the adapter's own classes or names that are typed in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.arrivals import arrivals, picker
from tabs.asking import now, on_asking
from tabs.common import Studio, bars, chosen, endpoint, image_input, lead, no_model, percent
from tabs.examples import worked
from tabs.search import given
from vlkit.errors import UserError
from vlkit.serving import check_count, check_text

MOST_CLASSES, MOST_SHOWN = 200, 20
DEMO_NAMES = "house, car, boat, tree, flower, cat, bird, fish, chair, umbrella"


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models  # its classifiers may become more
    lead("Type class names, and the model says how well each fits the image. Without names it uses its own classes.")
    if not models.classifiers:
        no_model("classification", "classes")
        return
    rows = [[str(studio.album.images / entry.name)] for entry in studio.album.about_images[:5]]

    def newest() -> str | None:
        """The classifier that arrived last, unless an adapter of another task has arrived since."""
        last = studio.adapters.newest if studio.adapters is not None else None
        return last.name if last is not None and last.task == "classification" else None

    def found(image: Image.Image | None, names: str, count: int, model: str | None) -> list[tuple[str, float]]:
        k, wanted = check_count(count, "number of classes", MOST_SHOWN), class_names(names)
        return chosen(models.classifiers, model).classify(given(image), wanted, k)

    def show(image: Image.Image | None, names: str, count: int, model: str | None) -> str:
        return bars(found(image, names, count, model), percent, label="Classes, most probable first")

    with gr.Row():
        image = image_input("Image", value=rows[0][0], height=320, elem_id="classify-image")
        with gr.Column():
            names = gr.Textbox(
                DEMO_NAMES,
                label="Class names, separated by commas or lines; empty = the model's own",
                lines=3,
                max_lines=8,
                elem_id="classify-names",
            )
            model = picker(lambda: models.classifiers, newest)
            # A classifier that arrives is for its own classes.
            arrivals().follow(names, lambda: "" if newest() else gr.skip())
            count = gr.Slider(1, MOST_SHOWN, value=5, step=1, label="Classes to show")
            button = gr.Button("Classify", variant="primary", elem_id="classify-button")
            result = gr.HTML(
                worked(studio, "classify", show, Path(rows[0][0]), DEMO_NAMES, 5, None), elem_id="classify-result"
            )
    examples = gr.Examples(rows, [image], api_visibility="private", label="Try")

    def classify(
        image: Image.Image | None, names: str = "", count: int = 5, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Classes of an image: [{"class", "probability"}], most probable first; names separated by commas."""
        pairs = found(image, names, count, model)
        return [{"class": name, "probability": probability} for name, probability in pairs]

    inputs = [image, names, count, model]
    asking = on_asking(show, inputs, [result], by=[button.click], after=[examples.load_input_event])
    arrivals().follow(asking.asked, lambda: now() if newest() else gr.skip())
    endpoint("classify", classify, inputs)


def class_names(text: str | None) -> list[str] | None:
    """The names in a text, separated by commas or lines; None if there is none.

    Raises:
        UserError: too many names, or one that is too long.
    """
    names = [name.strip() for name in re.split(r"[,\n]", text or "") if name.strip()]
    if len(names) > MOST_CLASSES:
        raise UserError(f"There are {len(names)} class names; give at most {MOST_CLASSES}.")
    return [check_text(name, "class name") for name in names] or None
