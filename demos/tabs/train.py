"""Train: an adapter on a visitor's own images, with a live curve and a memory meter; shown with ``--train``."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.context import get_blocks_context

from tabs.arrivals import arrivals
from tabs.asking import on_page
from tabs.common import FilesInput, Studio, as_html, bars, lead
from vlkit.errors import UserError
from vlkit.serving import check_count
from vlkit.serving.added_adapters import safe_name
from vlkit.serving.costs import predicted_step
from vlkit.serving.own_images import LEAST_IMAGES, MOST_IMAGES
from vlkit.serving.training import Job, Wish
from vlkit.serving.uploaded import Upload
from vlkit.tasks.registry import TASKS

METHODS = TASKS["retrieval"].methods
MOST_EPOCHS, MOST_BATCH, DEMO_IMAGES = 100, 256, 60
SHOWN_METRICS = {"i2t_r1": "image to text, R@1", "t2i_r1": "text to image, R@1"}
MIB = 2**20


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab; call it within ``tab``."""
    trainer = studio.trainer
    assert trainer is not None
    lead(
        "Train an adapter for search on your own images and captions. The base stays frozen; when the run is finished, "
        "the other tabs use the adapter."
    )
    bases = _bases(studio)
    arrived, mine = gr.State(""), gr.State("")
    arrivals().announce(arrived)
    with gr.Row():
        with gr.Column():
            files = FilesInput(
                label=f"Images and captions, {LEAST_IMAGES} to {MOST_IMAGES} images",
                file_count="multiple",
                height=150,
                elem_id="train-files",
            )
            gr.Markdown(
                "A zip archive, or the files: images, and their captions in a CSV (columns image and caption), in a "
                "text file beside each image, or as the file names (a_red_car.jpg).",
                elem_classes="lead",
            )
            demo = gr.Checkbox(
                label=f"Without files of your own: use {DEMO_IMAGES} demo images", elem_id="train-demo", container=False
            )
        with gr.Column():
            base = gr.Dropdown(bases, value=bases[0], label="Base", visible=len(bases) > 1)
            with gr.Row():
                kind = gr.Dropdown(list(METHODS), value="sherl", label="Method", elem_id="train-kind", min_width=140)
                name = gr.Textbox(label="Name", placeholder="own", max_length=40, elem_id="train-name", min_width=140)
            with gr.Row():
                epochs = gr.Slider(1, MOST_EPOCHS, value=10, step=1, label="Epochs", elem_id="train-epochs")
                batch = gr.Slider(2, MOST_BATCH, value=32, step=1, label="Images per step", elem_id="train-batch")
            before = gr.HTML(elem_id="train-predicted")
            with gr.Row():
                start = gr.Button("Train", variant="primary", elem_id="train-start")
                stop = gr.Button("Stop and keep", interactive=False, elem_id="train-stop")
    status = gr.HTML(elem_id="train-status", elem_classes="status")
    curve = gr.LinePlot(
        x="step", y="loss", title="Loss", height=240, visible=False, elem_id="train-curve", x_axis_labels_visible=True
    )
    meter = gr.HTML(elem_id="train-meter")
    use = gr.Button("Search with it", variant="primary", visible=False, elem_id="train-use")
    timer = gr.Timer(1.0, active=False)
    shown = [status, curve, meter, start, stop, use, timer, arrived]

    def look(mine: str = "") -> tuple[Any, ...]:
        return view(trainer.job, mine, on_gpu=studio.about["device"].startswith("cuda"))

    def predict(base: str, kind: str, batch: float) -> str:
        return predicted_html(_base(studio, base), _kind(kind), check_count(batch, "number of images", MOST_BATCH))

    def begin(
        files: list[Upload], demo: bool, base: str, kind: str, epochs: float, batch: float, name: str
    ) -> tuple[Any, ...]:
        wish = Wish(
            _base(studio, base),
            _kind(kind),
            check_count(epochs, "number of epochs", MOST_EPOCHS),
            check_count(batch, "number of images per step", MOST_BATCH),
            f"{safe_name(name) or 'own'}-{time.strftime('%m%d-%H%M%S')}",
        )
        if demo and files:
            raise UserError("Either upload images, or use the demo images: remove one of the two.")
        trainer.start(demo_uploads(studio) if demo else files, wish)
        return wish.name, *look(wish.name)

    def end(mine: str) -> tuple[Any, ...]:
        trainer.stop()
        return look(mine)

    inputs = [files, demo, base, kind, epochs, batch, name]
    one = {"concurrency_limit": 1, "concurrency_id": "predicted step", "show_progress": "hidden"}
    on_page([tab.select, kind.change, base.change, batch.release], predict, [base, kind, batch], [before], **one)
    on_page([start.click], begin, inputs, [mine, *shown], show_progress="hidden")
    on_page([stop.click], end, [mine], shown, show_progress="hidden")
    root: Any = get_blocks_context()
    on_page([timer.tick, root.root_block.load], look, [mine], shown, show_progress="hidden")
    use.click(lambda: gr.Tabs(selected="Search"), None, tab.parent, api_visibility="private")


def view(job: Job | None, mine: str = "", on_gpu: bool = False) -> tuple[Any, ...]:
    """What the page shows of a run: status, curve, meter, both buttons, the way to the search, timer, arrival.

    Args:
        job: the run.
        mine: name of the visitor's own run.
        on_gpu: whether it runs on a GPU.
    """
    if job is None:
        return "", gr.skip(), "", gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
    lines = job.lines()
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    curve = gr.LinePlot(
        pd.DataFrame(points, columns=pd.Index(["step", "loss"])), visible=len(points) > 1, x_lim=[0, max(job.steps, 2)]
    )
    can_stop = job.phase in ("reading", "training") and not job.stopped
    return (
        status_html(job, lines, job.wish.name == mine),
        curve,
        meter_html(job, lines, on_gpu),
        gr.Button(interactive=not job.running),
        gr.Button(interactive=can_stop),
        gr.Button(visible=job.phase == "ready"),
        gr.Timer(active=job.running),
        job.folder.name if job.phase == "ready" else gr.skip(),
    )


def status_html(job: Job, lines: list[dict[str, Any]], own: bool) -> str:
    """HTML: where a run stands, with a progress bar; ``own``: this visitor began it."""
    name, kind = as_html(job.wish.name), as_html(job.wish.kind)
    if job.phase == "failed":
        return f'<p role="status"><b>{name}: not trained.</b> {as_html(job.error)}</p>'
    step = max((line["step"] for line in lines), default=0)
    notes = "".join(f"<p>{as_html(note[:1].upper() + note[1:])}.</p>" for note in (job.data.notes if job.data else []))
    if job.phase == "ready":
        early = f" It was stopped after step {step} of {job.steps}." if job.stopped and step < job.steps else ""
        return (
            f'<p role="status"><b>{as_html(job.result.name)} is ready</b> and chosen in the search.{early}</p>'
            f"<p>Its folder: <code>{as_html(str(job.folder))}</code>; <code>--model</code> with it offers it at the "
            f"next start.</p>{notes}"
        )
    if job.phase == "reading":
        text, share = f"Reading the images: {job.done} of {job.total}", job.done / max(1, job.total)
    elif job.phase == "opening":
        text, share = f"Indexing the library with it: {job.done} of {job.total}", job.done / max(1, job.total)
    elif not lines:
        text, share = "Starting: loading the base, measuring it before training", 0.0
    else:
        text, share = f"Step {step} of {job.steps}", step / max(1, job.steps)
        if step >= job.steps:
            text += "; measuring and saving the adapter"
        text += f", loss {next(line['loss'] for line in reversed(lines) if 'loss' in line):.3f}"
    if not own:
        notes = "<p>This run was begun in another window. Yours can start when it is finished.</p>" + notes
    text = f"Stopping after this step, and keeping what was trained. {text}" if job.stopped else text
    return (
        f'<p role="status"><b>{name}</b> ({kind}): {text}</p><div class="progress" role="progressbar" '
        f'aria-label="training" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<div style="width:{100 * share:.1f}%"></div></div>{notes}'
    )


def predicted_html(base: str, kind: str, batch: int) -> str:
    """HTML: the memory of a step, predicted without running it."""
    step = predicted_step(base, METHODS[kind](), batch)
    return (
        f'<p role="status">Predicted for {as_html(kind)}: <b>{_mib(step.total_bytes)}</b> per step, of which '
        f"{_mib(step.saved_bytes)} are saved activations; {step.trainable_parameters:,} of "
        f"{step.total_parameters:,} parameters are trained.</p>"
    )


def meter_html(job: Job, lines: list[dict[str, Any]], on_gpu: bool) -> str:
    """HTML: the predicted memory of a step, beside what was measured; and the metrics before and after."""
    if job.data is None or job.phase == "failed":
        return ""
    step = predicted_step(job.wish.base, METHODS[job.wish.kind](), job.batch_size)
    rows = [("predicted: whole step", step.total_bytes), ("predicted: saved activations", step.saved_bytes)]
    report = job.metrics()
    if report:
        rows.insert(1, ("measured: whole step, peak", report["peak_memory_bytes"]))
        rows.append(("measured: saved activations", report["saved_activation_bytes"]))
    most = max(size for _, size in rows)
    chart = bars(
        [(name, size / most) for name, size in rows],
        lambda share: _mib(share * most),
        label="Memory of a training step",
    )
    peak = max((line["memory_bytes"] for line in lines if "memory_bytes" in line), default=0)
    what = "GPU memory of the run" if on_gpu else "Memory of the training process, Python and libraries included"
    now = f"<p>{what}, peak so far: {_mib(peak)}. The prediction takes texts of full length.</p>" if peak else ""
    return f"<h3>Memory, {job.batch_size} images per step</h3>{chart}{now}{_metrics(report)}"


def _metrics(report: dict[str, Any]) -> str:
    if not report:
        return ""
    rows = [
        (f"{what}, {name}", report[key].get(metric, 0.0) / 100)
        for metric, what in SHOWN_METRICS.items()
        for key, name in (("before", "base"), ("after", "adapter"))
    ]
    title = f"<h3>Recall on the {'training' if report['split'] == 'train' else 'held-out'} images</h3>"
    return title + bars(rows, lambda share: f"{100 * share:.1f} %", label="Recall before and after")


def demo_uploads(studio: Studio) -> list[Upload]:
    """Demo images with a caption each, as if a visitor had uploaded them."""
    entries = studio.album.about_images[:DEMO_IMAGES]
    table = Path(os.environ["GRADIO_TEMP_DIR"]) / "captions.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        rows = [(entry.name, caption) for entry in entries for caption in entry.captions]
        csv.writer(file).writerows([("image", "caption"), *rows])
    images = [Upload(studio.album.images / entry.name, entry.name) for entry in entries]
    return [*images, Upload(table, table.name)]


def _bases(studio: Studio) -> list[str]:
    """The bases of the loaded search adapters."""
    configs = studio.models.configs.get("retrieval", {}).values()
    return list(dict.fromkeys(config["base"]["image"]["load"] for config in configs))


def _base(studio: Studio, name: str) -> str:
    if name not in _bases(studio):
        raise UserError(f"The base must be one of {', '.join(_bases(studio))}.")
    return name


def _kind(name: str) -> str:
    if name not in METHODS:
        raise UserError(f"The method must be one of {', '.join(METHODS)}.")
    return name


def _mib(count: float) -> str:
    return f"{count / MIB:,.1f} MiB"
