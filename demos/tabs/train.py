"""Train: an adapter on a visitor's own images and captions, or classes, with a live curve and a memory meter.

Shown with ``--train``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context

from tabs.arrivals import arrivals
from tabs.asking import on_page
from tabs.common import Studio, lead, told
from tabs.train_files import FilesGiven, build_files, shown_for, uploads_of
from tabs.train_subjects import SUBJECTS, bases_of, subjects_of
from tabs.training_view import predicted_html, view
from vlkit.adapters import ADAPTERS
from vlkit.errors import UserError
from vlkit.serving import check_count
from vlkit.serving.added_adapters import safe_name
from vlkit.serving.training import Wish

METHODS = ADAPTERS
"""Those of both tasks."""
MOST_EPOCHS, MOST_BATCH = 100, 256


@dataclass
class _Form:
    """What the visitor fills in."""

    what: gr.Radio
    files: FilesGiven
    base: gr.Dropdown
    kind: gr.Dropdown
    name: gr.Textbox
    epochs: gr.Slider
    batch: gr.Slider
    predicted: gr.HTML
    start: gr.Button
    stop: gr.Button


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab; call it within ``tab``."""
    lead(
        "Train an adapter on your own images. The base stays frozen; when the run is finished, the other tabs use the "
        "adapter."
    )
    arrived, mine = gr.State(""), gr.State("")
    arrivals().announce(arrived)
    form = _lay_out_form(studio)
    status = gr.HTML(elem_id="train-status", elem_classes="status")
    curve = gr.LinePlot(
        x="step", y="loss", title="Loss", height=240, visible=False, elem_id="train-curve", x_axis_labels_visible=True
    )
    meter = gr.HTML(elem_id="train-meter")
    first = next(iter(subjects_of(studio)))
    use = gr.Button(SUBJECTS[first].use, variant="primary", visible=False, elem_id="train-use")
    timer = gr.Timer(1.0, active=False)
    _wire_prediction(studio, tab, form)
    _wire_run(studio, form, mine, [status, curve, meter, form.start, form.stop, use, timer, arrived], timer)
    job = studio.trainer
    assert job is not None
    use.click(
        lambda: gr.Tabs(selected=SUBJECTS[job.job.wish.task if job.job else first].tab),
        None,
        tab.parent,
        api_visibility="private",
    )


def _lay_out_form(studio: Studio) -> _Form:
    subjects = subjects_of(studio)
    first = next(iter(subjects))
    bases = bases_of(studio, first)
    what = gr.Radio(
        [(subject.choice, task) for task, subject in subjects.items()],
        value=first,
        label="What to learn",
        visible=len(subjects) > 1,
        elem_id="train-what",
    )
    with gr.Row():
        with gr.Column():
            files = build_files(first)
        with gr.Column():
            base = gr.Dropdown(bases, value=bases[0], label="Base", visible=len(bases) > 1)
            with gr.Row():
                kind = gr.Dropdown(list(METHODS), value="sherl", label="Method", elem_id="train-kind", min_width=140)
                name = gr.Textbox(label="Name", placeholder="own", max_length=40, elem_id="train-name", min_width=140)
            with gr.Row():
                epochs = gr.Slider(1, MOST_EPOCHS, value=10, step=1, label="Epochs", elem_id="train-epochs")
                batch = gr.Slider(2, MOST_BATCH, value=32, step=1, label="Images per step", elem_id="train-batch")
            predicted = gr.HTML(elem_id="train-predicted")
            with gr.Row():
                start = gr.Button("Train", variant="primary", elem_id="train-start")
                stop = gr.Button("Stop and keep", interactive=False, elem_id="train-stop")
    return _Form(what, files, base, kind, name, epochs, batch, predicted, start, stop)


def _wire_prediction(studio: Studio, tab: gr.Tab, form: _Form) -> None:
    """Predict the bytes of a step whenever the form changes; another task has other bases and files."""

    def switch(task: str) -> tuple[Any, ...]:
        bases = bases_of(studio, task)
        return gr.Dropdown(bases, value=bases[0], visible=len(bases) > 1), *shown_for(task)

    def predict(task: str, base: str, kind: str, batch: float) -> str:
        return predicted_html(
            *_checked(studio, task, base, kind), check_count(batch, "number of images per step", MOST_BATCH)
        )

    one = {"concurrency_limit": 1, "concurrency_id": "predicted step", "show_progress": "hidden"}
    asked, shown = [form.what, form.base, form.kind, form.batch], [form.predicted]
    on_page([tab.select, form.kind.change, form.base.change, form.batch.release], predict, asked, shown, **one)
    switched = on_page(
        [form.what.change], switch, [form.what], [form.base, *form.files.outputs], show_progress="hidden"
    )
    switched.success(told(predict), asked, shown, api_visibility="private", **one)


def _wire_run(studio: Studio, form: _Form, mine: gr.State, shown: list[Any], timer: gr.Timer) -> None:
    """Start and stop a run, and look at it every second; ``mine`` is the name of the visitor's own run."""
    trainer = studio.trainer
    assert trainer is not None

    def look(mine: str = "") -> tuple[Any, ...]:
        return view(trainer.job, mine, on_gpu=studio.about["device"].startswith("cuda"))

    def begin(task: str, base: str, kind: str, epochs: float, batch: float, name: str, *files: Any) -> tuple[Any, ...]:
        task, base, kind = _checked(studio, task, base, kind)
        wish = Wish(
            base,
            kind,
            check_count(epochs, "number of epochs", MOST_EPOCHS),
            check_count(batch, "number of images per step", MOST_BATCH),
            f"{safe_name(name) or 'own'}-{time.strftime('%m%d-%H%M%S')}",
            task,
        )
        trainer.start(uploads_of(studio, task, *files), wish)
        return wish.name, *look(wish.name)

    def end(mine: str) -> tuple[Any, ...]:
        trainer.stop()
        return look(mine)

    wished = [form.what, form.base, form.kind, form.epochs, form.batch, form.name, *form.files.inputs]
    on_page([form.start.click], begin, wished, [mine, *shown], show_progress="hidden")
    on_page([form.stop.click], end, [mine], shown, show_progress="hidden")
    root: Any = get_blocks_context()
    on_page([timer.tick, root.root_block.load], look, [mine], shown, show_progress="hidden")


def _checked(studio: Studio, task: str, base: str, kind: str) -> tuple[str, str, str]:
    """Task, base and method as they came.

    Raises:
        UserError: this demo does not train one of them.
    """
    there = {"task": list(subjects_of(studio)), "base": bases_of(studio, task), "method": list(METHODS)}
    for (what, names), name in zip(there.items(), (task, base, kind), strict=True):
        if name not in names:
            raise UserError(f"The {what} must be one of {', '.join(names)}.")
    return task, base, kind
