"""Ground: the box of the object that a phrase describes, drawn on the image, with other candidates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.common import (
    Studio,
    answered,
    chosen,
    endpoint,
    image_input,
    lead,
    no_model,
    on_example,
    on_page,
    percent,
    picker,
    told,
)
from tabs.search import given
from vlkit.data.draw_boxes import COLORS, draw_boxes
from vlkit.data.images import open_image
from vlkit.drawn.album import AlbumImage
from vlkit.serving import check_count, check_text

MOST_BOXES, EXAMPLES = 5, 5

Scored = list[tuple[list[float], float]]


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("grounding", {})
    lead("Describe an object in the image; the model draws a box around it.")
    if not models:
        no_model("grounding", "grounding")
        return
    known = {digest(studio.album.images / e.name): [p for p, _ in e.phrases] for e in shown(studio)}
    rows = [[str(studio.album.images / entry.name), entry.phrases[0][0]] for entry in shown(studio)]
    first = Path(rows[0][0])
    with gr.Row():
        with gr.Column():
            image = image_input("Image", value=rows[0][0], height=320, elem_id="ground-image")
            phrase = gr.Textbox(rows[0][1], label="Phrase", max_lines=2, elem_id="ground-phrase")
            ready = gr.Radio(
                known[digest(first)],
                value=rows[0][1],
                label="Phrases for this image: click one, or edit it above",
                elem_id="ground-ready",
            )
            count = gr.Slider(1, MOST_BOXES, value=3, step=1, label="Maximum number of candidates")
            model = picker(models)
            button = gr.Button("Find it", variant="primary", elem_id="ground-button")
        with gr.Column():
            drawn = gr.Image(
                label="Found", interactive=False, format="png", buttons=["fullscreen"], elem_id="ground-result"
            )
            result = gr.HTML(elem_id="ground-boxes")
    examples = gr.Examples(rows, [image, phrase], api_visibility="private", label="Try, then edit the phrase")
    gr.Markdown(
        "The examples are unselected test images that the shipped adapter was not trained on; it gets "
        "some of them wrong.",
        elem_classes="lead",
    )

    def boxes(image: Image.Image | None, phrase: str, count: int, model: str | None) -> Scored:
        phrase = check_text(phrase, "phrase")
        k = check_count(count, "number of candidates", MOST_BOXES)
        found = chosen(models, model).ground(given(image), phrase, candidates=k)
        pairs = [found] if k == 1 else found
        return [([float(value) for value in box], float(score)) for box, score in pairs]

    def show(image: Image.Image | None, phrase: str, count: int, model: str | None) -> tuple[Any, str]:
        found = boxes(image, phrase, count, model)
        alt = f"The image with a box around: {phrase.strip()}"
        labels = [f"{number}  {percent(score)}" for number, (_, score) in enumerate(found, start=1)]
        drawn = draw_boxes(given(image), [box for box, _ in found], labels=labels)
        return gr.Image(drawn, alt_text=alt), table(found)

    def offer(image: Image.Image | None, phrase: str) -> gr.Radio:
        """Phrases of a demo image; none for other images."""
        phrases = known.get(hashlib.sha256(image.tobytes()).hexdigest(), []) if image else []
        value = phrase if phrase in phrases else None
        return gr.Radio(phrases, value=value, visible=bool(phrases))

    def ground(
        image: Image.Image | None, phrase: str, count: int = 3, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Boxes of the object that a phrase describes: [{"box": [x1, y1, x2, y2] in pixels, "score"}], best first."""
        return [{"box": box, "score": score} for box, score in boxes(image, phrase, count, model)]

    inputs = [image, phrase, count, model]
    on_page([button.click, phrase.submit], show, inputs, [drawn, result])
    on_example(examples, show, inputs, [drawn, result])
    image.change(told(offer), [image, phrase], [ready], api_visibility="private", show_progress="hidden")
    # Once it is edited, it is none of them.
    phrase.input(lambda: gr.Radio(value=None), None, ready, api_visibility="private", show_progress="hidden")
    filled = ready.input(lambda choice: choice, ready, phrase, api_visibility="private", show_progress="hidden")
    filled.success(told(show), inputs, [drawn, result], api_visibility="private")
    answered(show, [first, rows[0][1], 3, None], [drawn, result])
    endpoint("ground", ground, inputs)


def shown(studio: Studio) -> list[AlbumImage]:
    """Demo images that are examples."""
    return [entry for entry in studio.album.about_images[2::9] if entry.phrases][:EXAMPLES]


def digest(path: Path) -> str:
    """Hash of an image's pixels, to recognise it."""
    return hashlib.sha256(open_image(path).tobytes()).hexdigest()


def table(found: Scored) -> str:
    """HTML of the candidates: number and colour, score, corners in pixels."""
    rows = "".join(
        f'<tr><td><span class="swatch" style="background:{COLORS[n]}"></span>{n + 1}</td><td>{percent(score)}</td>'
        f"<td>{b[0]:.0f} to {b[2]:.0f}</td><td>{b[1]:.0f} to {b[3]:.0f}</td></tr>"
        for n, (b, score) in enumerate(found)
    )
    return (
        '<table class="boxes"><caption>Candidates, best first</caption><thead><tr><th scope="col">No.</th>'
        '<th scope="col">Score</th><th scope="col">x in pixels</th><th scope="col">y in pixels</th></tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="lead">The first score is the overlap (IoU) with the correct box '
        "that the model predicts. The others are scaled by their value in the heat map, relative to its maximum.</p>"
    )
