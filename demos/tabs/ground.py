"""Ground: the box of what a phrase means, drawn on the picture, with the runners-up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from tabs.common import (
    Studio,
    chosen,
    endpoint,
    lead,
    no_model,
    on_example,
    on_page,
    percent,
    picker,
    picture_input,
    told,
)
from tabs.search import given
from vlkit.data.images import open_image
from vlkit.drawn.album import AlbumPicture
from vlkit.serving import check_count, check_text

MOST_BOXES, EXAMPLES = 5, 5
LEAST_SIDE = 640
"""Pixels of the longer side that boxes are drawn at: lines stay fine on a small picture."""
COLOURS = ["#0f766e", "#b45309", "#7c3aed", "#be123c", "#475569"]
"""Of the candidates, best first."""

Scored = list[tuple[list[float], float]]


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("grounding", {})
    lead("Name a thing in the picture; the model draws a box around it.")
    if not models:
        no_model("grounding", "grounding")
        return
    known = {digest(studio.album.pictures / e.name): [p for p, _ in e.phrases] for e in shown(studio)}
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", height=320, elem_id="ground-picture")
            phrase = gr.Textbox(label="Phrase", max_lines=2, elem_id="ground-phrase")
            ready = gr.Radio(
                [], label="Phrases for this picture: click one, or edit it above", visible=False, elem_id="ground-ready"
            )
            count = gr.Slider(1, MOST_BOXES, value=3, step=1, label="Candidates, at most")
            model = picker(models)
            button = gr.Button("Find it", variant="primary", elem_id="ground-button")
        with gr.Column():
            drawn = gr.Image(
                label="Found", interactive=False, format="png", buttons=["fullscreen"], elem_id="ground-result"
            )
            result = gr.HTML(elem_id="ground-boxes")
    rows = [[str(studio.album.pictures / entry.name), entry.phrases[0][0]] for entry in shown(studio)]
    examples = gr.Examples(rows, [picture, phrase], api_visibility="private", label="Try, then edit the phrase")
    gr.Markdown(
        "The examples are test pictures, which the shipped adapter was not trained on, taken as they come: it gets "
        "some of them wrong.",
        elem_classes="lead",
    )

    def boxes(picture: Image.Image | None, phrase: str, count: int, model: str | None) -> Scored:
        phrase = check_text(phrase, "phrase")
        k = check_count(count, "number of candidates", MOST_BOXES)
        found = chosen(models, model).ground(given(picture), phrase, candidates=k)
        pairs = [found] if k == 1 else found
        return [([float(value) for value in box], float(score)) for box, score in pairs]

    def show(picture: Image.Image | None, phrase: str, count: int, model: str | None) -> tuple[Any, str]:
        found = boxes(picture, phrase, count, model)
        alt = f"The picture with a box around: {phrase.strip()}"
        return gr.Image(draw_boxes(picture, found), alt_text=alt), table(found)

    def offer(picture: Image.Image | None, phrase: str) -> gr.Radio:
        """Phrases of a demo picture; of any other none are known."""
        phrases = known.get(hashlib.sha256(picture.tobytes()).hexdigest(), []) if picture else []
        value = phrase if phrase in phrases else None
        return gr.Radio(phrases, value=value, visible=bool(phrases))

    def ground(
        picture: Image.Image | None, phrase: str, count: int = 3, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Boxes of what a phrase means: [{"box": [x1, y1, x2, y2] in pixels, "score"}], best first."""
        return [{"box": box, "score": score} for box, score in boxes(picture, phrase, count, model)]

    inputs = [picture, phrase, count, model]
    on_page([button.click, phrase.submit], show, inputs, [drawn, result])
    on_example(examples, show, inputs, [drawn, result])
    picture.change(told(offer), [picture, phrase], [ready], api_visibility="private", show_progress="hidden")
    # Once it is edited, it is none of them.
    phrase.input(lambda: gr.Radio(value=None), None, ready, api_visibility="private", show_progress="hidden")
    filled = ready.input(lambda choice: choice, ready, phrase, api_visibility="private", show_progress="hidden")
    filled.success(told(show), inputs, [drawn, result], api_visibility="private")
    endpoint("ground", ground, inputs)


def shown(studio: Studio) -> list[AlbumPicture]:
    """Demo pictures that are examples."""
    return [entry for entry in studio.album.about_pictures[2::9] if entry.phrases][:EXAMPLES]


def digest(path: Path) -> str:
    """Hash of a picture's pixels, by which it is known again."""
    return hashlib.sha256(open_image(path).tobytes()).hexdigest()


def table(found: Scored) -> str:
    """HTML of the candidates: number and colour, score, corners in pixels."""
    rows = "".join(
        f'<tr><td><span class="swatch" style="background:{COLOURS[n]}"></span>{n + 1}</td><td>{percent(score)}</td>'
        f"<td>{b[0]:.0f} to {b[2]:.0f}</td><td>{b[1]:.0f} to {b[3]:.0f}</td></tr>"
        for n, (b, score) in enumerate(found)
    )
    return (
        '<table class="boxes"><caption>Candidates, best first</caption><thead><tr><th scope="col">No.</th>'
        '<th scope="col">Score</th><th scope="col">x in pixels</th><th scope="col">y in pixels</th></tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="lead">The first score is the overlap with the right box that the '
        "model expects. A runner-up has the share of it that its place is hot beside the hottest.</p>"
    )


def draw_boxes(picture: Image.Image, found: Scored) -> Image.Image:
    """The picture, enlarged if it is small, with numbered boxes and their scores; the best one on top and thicker."""
    scale = max(1.0, LEAST_SIDE / max(picture.size))
    canvas = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 220))
    font = ImageFont.load_default(size=7 * width)
    for number in reversed(range(len(found))):
        box = [value * scale for value in found[number][0]]
        line = 3 * width if number == 0 else width
        pen.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline="white", width=line + 2)
        pen.rectangle(box, outline=COLOURS[number], width=line)
    for number in reversed(range(len(found))):
        box, score = found[number]
        _label(pen, canvas.size, [value * scale for value in box], f"{number + 1}  {percent(score)}", number, font)
    return canvas


def _label(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], box: list[float], text: str, number: int, font: Any
) -> None:
    """A sign on the upper side of a box, or within it where there is no room above."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = right - left + 10, bottom - top + 8
    x = min(max(0, box[0]), size[0] - wide)
    y = box[1] - high if box[1] >= high else box[1]
    pen.rectangle([x, y, x + wide, y + high], fill=COLOURS[number])
    pen.text((x + 5 - left, y + 4 - top), text, font=font, fill="white")
