"""Ground: the box of what a phrase means, drawn on the picture, with the runners-up."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from tabs.common import (
    Studio,
    bars,
    chosen,
    endpoint,
    lead,
    no_model,
    on_example,
    on_page,
    percent,
    picker,
    picture_input,
)
from tabs.search import given
from vlkit.serving import check_count, check_text

MOST_BOXES = 5
LEAST_SIDE = 640
"""Pixels of the longer side that boxes are drawn at: lines stay fine on a small picture."""
COLOURS = ["#0f766e", "#d97706", "#7c3aed", "#be123c", "#64748b"]
"""Of the candidates, best first."""

Scored = list[tuple[list[float], float]]


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("grounding", {})
    lead("Name a thing in the picture; the model draws a box around it.")
    if not models:
        no_model("grounding", "grounding")
        return
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", height=320, elem_id="ground-picture")
            phrase = gr.Textbox(label="Phrase", max_lines=2, elem_id="ground-phrase")
            count = gr.Slider(1, MOST_BOXES, value=3, step=1, label="Candidates")
            model = picker(models)
            button = gr.Button("Find it", variant="primary", elem_id="ground-button")
        with gr.Column():
            drawn = gr.Image(
                label="Found", interactive=False, format="png", buttons=["fullscreen"], elem_id="ground-result"
            )
            result = gr.HTML(elem_id="ground-boxes")
    rows = [
        [str(studio.album.pictures / entry.name), phrase]
        for entry in studio.album.about_pictures[2::9]
        for phrase, _ in entry.phrases[:1]
    ]
    examples = gr.Examples(rows[:5], [picture, phrase], api_visibility="private", label="Try, then edit the phrase")

    def boxes(picture: Image.Image | None, phrase: str, count: int, model: str | None) -> Scored:
        phrase = check_text(phrase, "phrase")
        k = check_count(count, "number of candidates", MOST_BOXES)
        found = chosen(models, model).ground(given(picture), phrase, k=k)
        pairs = [found] if k == 1 else found
        return [([float(value) for value in box], float(score)) for box, score in pairs]

    def show(picture: Image.Image | None, phrase: str, count: int, model: str | None) -> tuple[Any, str]:
        found = boxes(picture, phrase, count, model)
        names = [f"{n}. x {b[0]:.0f} to {b[2]:.0f}, y {b[1]:.0f} to {b[3]:.0f}" for n, (b, _) in enumerate(found, 1)]
        told = f"The picture with a box around: {phrase.strip()}"
        return (
            gr.Image(draw_boxes(picture, found), alt_text=told),
            bars(
                [(name, score) for name, (_, score) in zip(names, found, strict=True)],
                percent,
                COLOURS,
                "Candidates in pixels, best first",
            ),
        )

    def ground(
        picture: Image.Image | None, phrase: str, count: int = 3, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Boxes of what a phrase means: [{"box": [x1, y1, x2, y2] in pixels, "score"}], best first."""
        return [{"box": box, "score": score} for box, score in boxes(picture, phrase, count, model)]

    inputs = [picture, phrase, count, model]
    on_page([button.click, phrase.submit], show, inputs, [drawn, result])
    on_example(examples, show, inputs, [drawn, result])
    endpoint("ground", ground, inputs)


def draw_boxes(picture: Image.Image, found: Scored) -> Image.Image:
    """The picture, enlarged if it is small, with the boxes on it; the best one on top and with a thicker line."""
    scale = max(1.0, LEAST_SIDE / max(picture.size))
    canvas = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 220))
    for number in reversed(range(len(found))):
        box = [value * scale for value in found[number][0]]
        line = 2 * width if number == 0 else width
        pen.rectangle(box, outline="white", width=line + 2)
        pen.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline=COLOURS[number], width=line)
    return canvas
