"""Ground: the boxes of the objects that phrases describe, drawn on the image; for one phrase, other candidates too."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.common import (
    Studio,
    answered,
    as_html,
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
from vlkit.data.draw_boxes import COLORS, draw_boxes, drawn_scale
from vlkit.data.images import open_image
from vlkit.drawn.album import AlbumImage
from vlkit.errors import UserError
from vlkit.serving import check_count, check_text

MOST_BOXES, MOST_PHRASES, EXAMPLES = 5, len(COLORS), 5
SHOWN_PHRASES = 3
"""Phrases of an example."""


@dataclass(frozen=True)
class Box:
    """A box xyxy in pixels of the image, its score, and the phrase that it was found for."""

    phrase: str
    box: list[float]
    score: float


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("grounding", {})
    lead(
        "Describe objects in the image; the model draws a box around each. Several phrases, on separate lines or "
        "separated by semicolons, are found at once."
    )
    if not models:
        no_model("grounding", "grounding")
        return
    known = {digest(studio.album.images / e.name): [p for p, _ in e.phrases] for e in shown(studio)}
    rows = [[str(studio.album.images / entry.name), example_of(entry)] for entry in shown(studio)]
    first = Path(rows[0][0])
    boxes_found = gr.State([])
    with gr.Row():
        with gr.Column():
            image = image_input("Image", value=rows[0][0], height=320, elem_id="ground-image")
            phrases = gr.Textbox(rows[0][1], label="Phrases", lines=1, max_lines=5, elem_id="ground-phrase")
            ready = gr.Radio(
                known[digest(first)],
                value=None,
                label="Phrases for this image: click one, or edit them above",
                elem_id="ground-ready",
            )
            count = gr.Slider(1, MOST_BOXES, value=3, step=1, label="Maximum number of candidates for a single phrase")
            model = picker(models)
            button = gr.Button("Find", variant="primary", elem_id="ground-button")
        with gr.Column():
            drawn = gr.Image(
                label="Found: click a box to edit its phrase",
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_id="ground-result",
            )
            which = gr.Radio([], label="Box to edit", visible=False, elem_id="ground-which")
            edited = gr.Textbox(label="Its phrase; Enter finds it anew", visible=False, elem_id="ground-edit")
            result = gr.HTML(elem_id="ground-boxes")
    examples = gr.Examples(rows, [image, phrases], api_visibility="private", label="Try, then edit the phrases")
    gr.Markdown(
        "The examples are unselected test images that the shipped adapter was not trained on; it gets "
        "some of them wrong.",
        elem_classes="lead",
    )

    def find(image: Image.Image | None, text: str, count: int, model: str | None) -> list[Box]:
        wanted = phrases_in(text)
        k = check_count(count, "number of candidates", MOST_BOXES) if len(wanted) == 1 else 1
        found = []
        for phrase in wanted:
            answer = chosen(models, model).ground(given(image), phrase, candidates=k)
            for box, score in [answer] if k == 1 else answer:
                found.append(Box(phrase, [float(value) for value in box], float(score)))
        return found

    def show(image: Image.Image | None, text: str, count: int, model: str | None) -> tuple[Any, ...]:
        found, wanted = find(image, text, count, model), phrases_in(text)
        alt = f"The image with a box around: {'; '.join(wanted)}"
        labels = [f"{number}  {percent(each.score)}" for number, each in enumerate(found, start=1)]
        canvas = draw_boxes(given(image), [each.box for each in found], labels=labels)
        several = len(wanted) > 1
        choices = [(f"{number}  {phrase}", number - 1) for number, phrase in enumerate(wanted, start=1)]
        picked = gr.Radio(choices, value=None, visible=several)
        hidden = gr.Textbox("", visible=False)
        return gr.Image(canvas, alt_text=alt), table(found, several), found, picked, hidden

    def clicked(found: list[Box], image: Image.Image | None, event: gr.SelectData) -> tuple[Any, Any]:
        """The smallest box around the point becomes the one to edit; one that is alone stands in its text box."""
        scale = drawn_scale(given(image).size)  # the event gives pixels of the drawing
        number = box_at(found, (event.index[0] / scale, event.index[1] / scale))
        several = len({each.phrase for each in found}) > 1
        return (number, edit(number, found)) if several and number is not None else (gr.skip(), gr.skip())

    def edit(number: int | None, found: list[Box]) -> Any:
        return gr.skip() if number is None or number >= len(found) else gr.Textbox(found[number].phrase, visible=True)

    def replaced(number: int | None, phrase: str, text: str) -> str:
        wanted = phrases_in(text)
        if number is not None and number < len(wanted):
            wanted[number] = check_text(phrase, "phrase")
        return "; ".join(wanted)

    def offer(image: Image.Image | None, text: str) -> gr.Radio:
        """Phrases of a demo image; none for other images."""
        phrases = known.get(hashlib.sha256(image.tobytes()).hexdigest(), []) if image else []
        value = text if text in phrases else None
        return gr.Radio(phrases, value=value, visible=bool(phrases))

    def ground(
        image: Image.Image | None, phrase: str, count: int = 3, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Boxes of what a phrase describes: [{"phrase", "box": [x1, y1, x2, y2] in pixels, "score"}], best first.

        Several phrases, separated by semicolons or on lines of their own, get one box each, in their order.
        """
        return [asdict(each) for each in find(image, phrase, count, model)]

    inputs, outputs = [image, phrases, count, model], [drawn, result, boxes_found, which, edited]
    on_page([button.click, phrases.submit], show, inputs, outputs)
    on_example(examples, show, inputs, outputs)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    image.change(told(offer), [image, phrases], [ready], **quiet)
    # Once it is edited, it is none of them.
    phrases.input(lambda: gr.Radio(value=None), None, ready, **quiet)
    filled = ready.input(lambda choice: choice, ready, phrases, **quiet)
    filled.success(told(show), inputs, outputs, api_visibility="private")
    drawn.select(told(clicked), [boxes_found, image], [which, edited], **quiet)
    which.input(edit, [which, boxes_found], [edited], **quiet)
    changed = edited.submit(told(replaced), [which, edited, phrases], [phrases], **quiet)
    changed.success(told(show), inputs, outputs, api_visibility="private")
    answered(show, [first, rows[0][1], 3, None], outputs)
    endpoint("ground", ground, inputs)


def phrases_in(text: str | None) -> list[str]:
    """The phrases in a text, separated by semicolons or lines.

    Raises:
        UserError: there is none, there are too many, or one is too long.
    """
    found = [phrase.strip() for phrase in re.split(r"[;\n]", text or "") if phrase.strip()]
    if len(found) > MOST_PHRASES:
        raise UserError(f"There are {len(found)} phrases; give at most {MOST_PHRASES}, separated by semicolons.")
    return [check_text(phrase, "phrase") for phrase in found] or [check_text("", "phrase")]


def box_at(found: list[Box], point: tuple[float, float]) -> int | None:
    """Number of the smallest box around a point in pixels of the image; None if there is none."""
    around = [
        ((box[2] - box[0]) * (box[3] - box[1]), number)
        for number, box in enumerate(each.box for each in found)
        if box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
    ]
    return min(around)[1] if around else None


def example_of(entry: AlbumImage) -> str:
    """The first phrases of a demo image."""
    return "; ".join(phrase for phrase, _ in entry.phrases[:SHOWN_PHRASES])


def shown(studio: Studio) -> list[AlbumImage]:
    """Demo images that are examples."""
    return [entry for entry in studio.album.about_images[2::9] if entry.phrases][:EXAMPLES]


def digest(path: Path) -> str:
    """Hash of an image's pixels, to recognise it."""
    return hashlib.sha256(open_image(path).tobytes()).hexdigest()


def table(found: list[Box], several: bool) -> str:
    """HTML of the boxes: number and colour, phrase if there are several, score, corners in pixels."""
    names = ["No.", *(["Phrase"] if several else []), "Score", "x in pixels", "y in pixels"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    title = "Best box of each phrase" if several else "Candidates, best first"
    rows = []
    for n, each in enumerate(found):
        b, phrase = each.box, f"<td>{as_html(each.phrase)}</td>" if several else ""
        rows.append(
            f'<tr><td><span class="swatch" style="background:{COLORS[n]}"></span>{n + 1}</td>{phrase}'
            f"<td>{percent(each.score)}</td><td>{b[0]:.0f} to {b[2]:.0f}</td><td>{b[1]:.0f} to {b[3]:.0f}</td></tr>"
        )
    note = "The score is the overlap (IoU) with the correct box that the model predicts."
    if not several:
        note += " Further candidates are scaled by their value in the heat map, relative to its maximum."
    return (
        f'<table class="boxes"><caption>{title}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><p class="lead">{note}</p>'
    )
