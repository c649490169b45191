"""Ground: the boxes of the objects that phrases describe, drawn on the image; for one phrase, other candidates too."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from tabs.arrivals import picker
from tabs.asking import on_asking
from tabs.common import Studio, as_html, chosen, endpoint, image_input, lead, no_model, percent, told
from tabs.examples import worked
from tabs.search import given
from vlkit.data.draw_boxes import COLORS, draw_boxes, drawn_scale
from vlkit.data.images import open_image
from vlkit.drawn.album import AlbumImage
from vlkit.errors import UserError
from vlkit.serving import check_count, check_text

MOST_BOXES, MOST_PHRASES, EXAMPLES = 5, len(COLORS), 5
SHOWN_PHRASES = 3
"""Phrases of an example."""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class Box:
    """A box xyxy in pixels of the image, its score, and the phrase that it was found for."""

    phrase: str
    box: list[float]
    score: float


@dataclass(frozen=True)
class Answer:
    """The boxes of some phrases, and the image with them."""

    phrases: list[str]
    boxes: list[Box]
    drawing: Image.Image

    @property
    def alt(self) -> str:
        """The text in place of the drawing."""
        return f"The image with a box around: {'; '.join(self.phrases)}"

    @property
    def choices(self) -> list[tuple[str, int]]:
        """The phrases to choose from, with their numbers."""
        return [(f"{number}  {phrase}", number - 1) for number, phrase in enumerate(self.phrases, start=1)]


class Page(NamedTuple):
    """The components of the tab."""

    image: Any
    phrases: gr.Textbox
    ready: gr.Radio
    count: gr.Slider
    model: gr.Dropdown
    button: gr.Button
    boxes: gr.State
    drawing: gr.Image
    which: gr.Radio
    edited: gr.Textbox
    table: gr.HTML
    examples: gr.Examples

    @property
    def inputs(self) -> list[Any]:
        """What :func:`find` takes after the models."""
        return [self.image, self.phrases, self.count, self.model]


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
    page = _lay_out(studio, models, known)
    _answer_requests(models, page)
    _edit_phrases(page, known)

    def ground(
        image: Image.Image | None, phrase: str, count: int = 3, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Boxes of what a phrase describes: [{"phrase", "box": [x1, y1, x2, y2] in pixels, "score"}], best first.

        Several phrases, separated by semicolons or on lines of their own, get one box each, in their order.
        """
        return [asdict(each) for each in find(models, image, phrase, count, model).boxes]

    endpoint("ground", ground, page.inputs)


def find(
    models: dict[str, Any], image: Image.Image | None, text: str, count: float = 1, model: str | None = None
) -> Answer:
    """What a model finds for the phrases in ``text``: for a single phrase ``count`` candidates, else one box each.

    Raises:
        UserError: there is no image or no such model, or the text or count is out of range.
    """
    wanted = phrases_in(text)
    k = check_count(count, "number of candidates", MOST_BOXES) if len(wanted) == 1 else 1
    boxes = []
    for phrase in wanted:
        found = chosen(models, model).ground(given(image), phrase, candidates=k)
        for box, score in [found] if k == 1 else found:
            boxes.append(Box(phrase, [float(value) for value in box], float(score)))
    return drawn(wanted, boxes, given(image))


def drawn(phrases: list[str], boxes: list[Box], image: Image.Image) -> Answer:
    """The answer, with its drawing."""
    labels = [f"{number}  {percent(each.score)}" for number, each in enumerate(boxes, start=1)]
    return Answer(phrases, boxes, draw_boxes(image, [each.box for each in boxes], labels=labels))


def _lay_out(studio: Studio, models: dict[str, Any], known: dict[str, list[str]]) -> Page:
    """The components, with the first example and its answer."""
    rows = [[str(studio.album.images / entry.name), example_of(entry)] for entry in shown(studio)]
    first = Path(rows[0][0])

    def found(image: Image.Image, text: str) -> list[dict[str, Any]]:
        return [asdict(each) for each in find(models, image, text).boxes]

    known_boxes = [Box(**each) for each in worked(studio, "ground", found, first, rows[0][1]) or []]
    answer = drawn(phrases_in(rows[0][1]), known_boxes, open_image(first)) if known_boxes else None
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
            drawing = gr.Image(
                answer and answer.drawing,
                alt_text=answer and answer.alt,
                label="Found: click a box to edit its phrase",
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_id="ground-result",
            )
            which = gr.Radio(
                answer.choices if answer else [],
                value=None,
                label="Box to edit",
                visible=answer is not None and len(answer.phrases) > 1,
                elem_id="ground-which",
            )
            edited = gr.Textbox(label="Its phrase; Enter finds it anew", visible=False, elem_id="ground-edit")
            table = gr.HTML(answer and table_of(answer), elem_id="ground-boxes")
    examples = gr.Examples(rows, [image, phrases], api_visibility="private", label="Try, then edit the phrases")
    gr.Markdown(
        "The examples are the first test images with three described objects that do not overlap. The shipped adapter "
        "was not trained on them and gets some of them wrong.",
        elem_classes="lead",
    )
    boxes = gr.State(answer.boxes if answer else [])
    return Page(image, phrases, ready, count, model, button, boxes, drawing, which, edited, table, examples)


def _answer_requests(models: dict[str, Any], page: Page) -> None:
    """Find what the phrases describe: those typed in, an example's, one that is clicked, and one that is edited."""

    def show(image: Image.Image | None, text: str, count: int, model: str | None) -> tuple[Any, ...]:
        answer = find(models, image, text, count, model)
        picked = gr.Radio(answer.choices, value=None, visible=len(answer.phrases) > 1)
        drawing = gr.Image(answer.drawing, alt_text=answer.alt)
        return drawing, table_of(answer), answer.boxes, picked, gr.Textbox("", visible=False)

    def replaced(number: int | None, phrase: str, text: str) -> str:
        wanted = phrases_in(text)
        if number is not None and number < len(wanted):
            wanted[number] = check_text(phrase, "phrase")
        return "; ".join(wanted)

    clicked = page.ready.input(lambda choice: choice, page.ready, page.phrases, **QUIET)
    changed = page.edited.submit(told(replaced), [page.which, page.edited, page.phrases], [page.phrases], **QUIET)
    outputs = [page.drawing, page.table, page.boxes, page.which, page.edited]
    by, after = [page.button.click, page.phrases.submit], [page.examples.load_input_event, clicked, changed]
    on_asking(show, page.inputs, outputs, by, after)


def _edit_phrases(page: Page, known: dict[str, list[str]]) -> None:
    """Offer the phrases of a demo image to click, and the phrase of a box that is clicked to edit."""

    def offer(image: Image.Image | None, text: str) -> gr.Radio:
        """Phrases of a demo image; none for other images."""
        phrases = known.get(hashlib.sha256(image.tobytes()).hexdigest(), []) if image else []
        value = text if text in phrases else None
        return gr.Radio(phrases, value=value, visible=bool(phrases))

    def edit(number: int | None, boxes: list[Box]) -> Any:
        return gr.skip() if number is None or number >= len(boxes) else gr.Textbox(boxes[number].phrase, visible=True)

    def clicked(boxes: list[Box], image: Image.Image | None, event: gr.SelectData) -> tuple[Any, Any]:
        """The smallest box around the point becomes the one to edit; one that is alone stands in its text box."""
        scale = drawn_scale(given(image).size)  # the event gives pixels of the drawing
        number = box_at(boxes, (event.index[0] / scale, event.index[1] / scale))
        several = len({each.phrase for each in boxes}) > 1
        return (number, edit(number, boxes)) if several and number is not None else (gr.skip(), gr.skip())

    page.image.change(told(offer), [page.image, page.phrases], [page.ready], **QUIET)
    # Once it is edited, it is none of them.
    page.phrases.input(lambda: gr.Radio(value=None), None, page.ready, **QUIET)
    page.drawing.select(told(clicked), [page.boxes, page.image], [page.which, page.edited], **QUIET)
    page.which.input(edit, [page.which, page.boxes], [page.edited], **QUIET)


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
    """Demo images that are examples: the first in which the objects of several phrases do not overlap."""
    found = (entry for entry in studio.album.about_images if len(entry.phrases) >= SHOWN_PHRASES and are_apart(entry))
    return list(itertools.islice(found, EXAMPLES))


def are_apart(entry: AlbumImage) -> bool:
    """Whether the boxes of the first phrases do not overlap."""
    boxes = [box for _, box in entry.phrases[:SHOWN_PHRASES]]
    return all(
        a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3] for a, b in itertools.combinations(boxes, 2)
    )


def digest(path: Path) -> str:
    """Hash of an image's pixels, to recognise it."""
    return hashlib.sha256(open_image(path).tobytes()).hexdigest()


def table_of(answer: Answer) -> str:
    """HTML of the boxes: number and colour, phrase if there are several, score, corners in pixels."""
    several = len(answer.phrases) > 1
    names = ["No.", *(["Phrase"] if several else []), "Score", "x (pixels)", "y (pixels)"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    title = "Best box of each phrase" if several else f"Candidates for “{as_html(answer.phrases[0])}”, best first"
    rows = []
    for n, each in enumerate(answer.boxes):
        b, phrase = each.box, f"<td>{as_html(each.phrase)}</td>" if several else ""
        rows.append(
            f'<tr><td class="number"><span class="swatch" style="background:{COLORS[n]}"></span>{n + 1}</td>{phrase}'
            f'<td class="number">{percent(each.score)}</td><td class="number">{b[0]:.0f} to {b[2]:.0f}</td>'
            f'<td class="number">{b[1]:.0f} to {b[3]:.0f}</td></tr>'
        )
    note = "The score is the overlap (IoU) with the correct box that the model predicts."
    if not several:
        note += " Further candidates are scaled by their value in the heat map, relative to its maximum."
    return (
        f'<table class="boxes"><caption>{title}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><p class="lead">{note}</p>'
    )
