"""Compare, for grounding: the boxes that two models find for the same phrases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.asking import on_asking
from tabs.common import Studio, endpoint, image_input, percent
from tabs.comparing import BATCH, PREDICTING, models, sides, tell_facts
from tabs.examples import worked
from tabs.ground import Answer, Box, find, shown
from tabs.search import given
from vlkit.data.draw_boxes import draw_boxes
from vlkit.data.images import open_image
from vlkit.serving.compared import Compared

TASK = "grounding"


def build(studio: Studio, compared: Compared, opened: list[Any]) -> None:
    """Lay out the part; call it within a column that comes into sight with the events ``opened``."""
    # The tab of one model opens with the first of them.
    rows = [[str(studio.album.images / entry.name), entry.phrases[0][0]] for entry in reversed(shown(studio))]

    def boxes(image: Image.Image | None, phrases: str, *names: str) -> list[list[Box]]:
        models(compared, TASK, *names)
        return [find(compared[TASK], image, phrases, 1, name).boxes for name in names]

    def drawn(image: Image.Image | None, found: list[list[Box]], *names: str) -> list[dict[str, Any]]:
        """What the component of each side shows."""
        sides = zip(names, found, strict=True)
        return [_shown(given(image), name, own, compared.config(TASK, name) is not None) for name, own in sides]

    def show(image: Image.Image | None, phrases: str, left: str, right: str) -> list[gr.Image]:
        return [gr.Image(**each) for each in drawn(image, boxes(image, phrases, left, right), left, right)]

    def answered(image: Image.Image, phrases: str, *names: str) -> list[list[dict[str, Any]]]:
        return [[asdict(each) for each in found] for found in boxes(image, phrases, *names)]

    opening, names = Path(rows[0][0]), compared.default(TASK)
    known = worked(studio, "compare_ground", answered, opening, rows[0][1], *names)
    found = [[Box(**each) for each in side] for side in known or []]
    first = drawn(open_image(opening), found, *names) if found else [{}, {}]

    def result(number: int, elem_id: str) -> gr.Image:
        look: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
        return gr.Image(**first[number], **look, elem_id=elem_id)

    with gr.Row():
        image = image_input("Image", value=rows[0][0], height=240, elem_id="compare-ground-image")
        with gr.Column():
            phrases = gr.Textbox(
                rows[0][1], label="Phrases, separated by semicolons", max_lines=5, elem_id="compare-ground-phrase"
            )
            button = gr.Button("Compare", variant="primary", elem_id="compare-ground-button")
            gr.Markdown(
                "The percentage is the overlap (IoU) with the correct box that a trained model expects. A base alone "
                "has boxes around the cells that are most similar to the phrase.",
                elem_classes="lead",
            )
    both = sides(compared, TASK, "compare-ground", result)
    examples = gr.Examples(rows, [image, phrases], api_visibility="private", label="Try")

    def compare_boxes(image: Image.Image | None, phrase: str, left: str, right: str) -> list[dict[str, Any]]:
        """Two models on the same phrases: [{"model", "boxes", "trained_parameters", "saved_bytes"}], left and right.

        "boxes" is [{"phrase", "box": [x1, y1, x2, y2] in pixels, "score"}], one for each phrase in their order. The
        score is the expected IoU; without training it is the cosine similarity of the best cell.
        """
        return [
            {
                "model": name,
                "boxes": [asdict(each) for each in own],
                **compared.costs(TASK, name, BATCH),
            }
            for name, own in zip((left, right), boxes(image, phrase, left, right), strict=True)
        ]

    inputs = [image, phrases, *both.choices]
    by, after = [button.click, phrases.submit, *both.changes], [examples.load_input_event]
    on_asking(show, inputs, both.results, by, after)
    tell_facts(compared, TASK, both, opened)
    endpoint("compare_boxes", compare_boxes, inputs, **PREDICTING)


def _shown(image: Image.Image, name: str, found: list[Box], trained: bool) -> dict[str, Any]:
    """Value, label and alternative text of the image with the boxes; cosines are no shares, so they are not drawn."""
    labels = [
        f"{number}  {percent(each.score)}" if trained else str(number) for number, each in enumerate(found, start=1)
    ]
    answer = Answer(
        [each.phrase for each in found], found, draw_boxes(image, [each.box for each in found], labels=labels)
    )
    return {"value": answer.drawing, "label": name, "alt_text": f"{name}. {answer.alt}"}
