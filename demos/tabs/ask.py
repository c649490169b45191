"""Ask: a question about an image, answers as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tabs.arrivals import picker
from tabs.asking import on_asking
from tabs.common import Studio, bars, chosen, endpoint, image_input, lead, no_model, percent
from tabs.examples import worked
from tabs.search import given
from vlkit.serving import check_count, check_text

MOST_ANSWERS = 10


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("vqa", {})
    lead("Ask a question about an image. Each bar is the model's probability of one answer, scored independently.")
    if not models:
        no_model("vqa", "questions")
        return
    # A different question number for each image, because each image's questions are sorted by kind.
    rows = [
        [str(studio.album.images / entry.name), entry.questions[number % len(entry.questions)][0]]
        for number, entry in enumerate(studio.album.about_images)
        if entry.questions
    ]

    def answers(image: Image.Image | None, question: str, count: int, model: str | None) -> list[tuple[str, float]]:
        question = check_text(question, "question")
        k = check_count(count, "number of answers", MOST_ANSWERS)
        return chosen(models, model).answer(given(image), question, k=k)

    def show(image: Image.Image | None, question: str, count: int, model: str | None) -> str:
        return bars(answers(image, question, count, model), percent, label="Answers, most probable first")

    with gr.Row():
        image = image_input("Image", value=rows[0][0], height=320, elem_id="ask-image")
        with gr.Column():
            question = gr.Textbox(rows[0][1], label="Question", max_lines=2, elem_id="ask-question")
            model = picker(models)
            count = gr.Slider(1, MOST_ANSWERS, value=5, step=1, label="Answers", visible=False)
            button = gr.Button("Ask", variant="primary", elem_id="ask-button")
            result = gr.HTML(worked(studio, "ask", show, Path(rows[0][0]), rows[0][1], 5, None), elem_id="ask-result")
    examples = gr.Examples(rows[:5], [image, question], api_visibility="private", label="Try")

    def answer(
        image: Image.Image | None, question: str, count: int = 5, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Answers to a question about an image: [{"answer", "probability"}], most probable first."""
        found = answers(image, question, count, model)
        return [{"answer": text, "probability": float(probability)} for text, probability in found]

    inputs = [image, question, count, model]
    on_asking(show, inputs, [result], by=[button.click, question.submit], after=[examples.load_input_event])
    endpoint("answer", answer, inputs)
