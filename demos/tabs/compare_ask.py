"""Compare, for questions: what two models answer to one question about an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.asking import on_asking
from tabs.common import Studio, bars, endpoint, image_input, percent
from tabs.comparing import BATCH, PREDICTING, models, sides, tell_facts
from tabs.examples import worked
from tabs.search import given
from vlkit.serving import check_text
from vlkit.serving.compared import Compared

TASK, ANSWERS = "vqa", 5


def build(studio: Studio, compared: Compared, opened: list[Any]) -> None:
    """Lay out the part; call it within a column that comes into sight with the events ``opened``."""
    rows = [
        [str(studio.album.images / entry.name), entry.questions[number % len(entry.questions)][0]]
        for number, entry in enumerate(studio.album.about_images)
        if entry.questions
    ][:5]

    def answers(image: Image.Image | None, question: str, *names: str) -> list[list[tuple[str, float]]]:
        asked, picture = check_text(question, "question"), given(image)
        return [model.answer(picture, asked, k=ANSWERS) for model in models(compared, TASK, *names)]

    def show(image: Image.Image | None, question: str, left: str, right: str) -> list[str]:
        pairs = zip((left, right), answers(image, question, left, right), strict=True)
        return [bars(found, percent, label=f"Answers of {name}, most probable first") for name, found in pairs]

    first = worked(studio, "compare_ask", show, Path(rows[0][0]), rows[0][1], *compared.default(TASK)) or [None, None]
    with gr.Row():
        image = image_input("Image", value=rows[0][0], height=240, elem_id="compare-ask-image")
        with gr.Column():
            question = gr.Textbox(rows[0][1], label="Question", max_lines=2, elem_id="compare-ask-question")
            button = gr.Button("Compare", variant="primary", elem_id="compare-ask-button")
    both = sides(compared, TASK, "compare-ask", lambda number, elem_id: gr.HTML(first[number], elem_id=elem_id))
    examples = gr.Examples(rows, [image, question], api_visibility="private", label="Try")

    def compare_answers(image: Image.Image | None, question: str, left: str, right: str) -> list[dict[str, Any]]:
        """Two models on one question: [{"model", "answers", "trained_parameters", "saved_bytes"}], left and right.

        "answers" is [{"answer", "probability"}], most probable first.
        """
        return [
            {
                "model": name,
                "answers": [{"answer": text, "probability": float(share)} for text, share in found],
                **compared.costs(TASK, name, BATCH),
            }
            for name, found in zip((left, right), answers(image, question, left, right), strict=True)
        ]

    inputs = [image, question, *both.choices]
    by, after = [button.click, question.submit, *both.changes], [examples.load_input_event]
    on_asking(show, inputs, both.results, by, after)
    tell_facts(compared, TASK, both, opened)
    endpoint("compare_answers", compare_answers, inputs, **PREDICTING)
