"""What the Train tab shows of a run: where it stands, its curve, its memory and its metrics."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from tabs.common import as_html, bars
from tabs.train_subjects import SUBJECTS, Subject
from vlkit.serving.costs import predicted_step
from vlkit.serving.training import Job
from vlkit.tasks.registry import TASKS

MIB = 2**20


def view(job: Job | None, mine: str = "", on_gpu: bool = False) -> tuple[Any, ...]:
    """What the page shows of a run: status, curve, meter, both buttons, the way to the result, timer, arrival.

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
        gr.Button(SUBJECTS[job.wish.task].use, visible=job.phase == "ready"),
        gr.Timer(active=job.running),
        job.folder.name if job.phase == "ready" else gr.skip(),
    )


def status_html(job: Job, lines: list[dict[str, Any]], own: bool) -> str:
    """HTML: where a run stands, with a progress bar; ``own``: this visitor began it."""
    name, kind, subject = as_html(job.wish.name), as_html(job.wish.kind), SUBJECTS[job.wish.task]
    if job.phase == "failed":
        return f'<p role="status"><b>{name}: not trained.</b> {as_html(job.error)}</p>'
    step = max((line["step"] for line in lines), default=0)
    notes = "".join(f"<p>{as_html(note[:1].upper() + note[1:])}.</p>" for note in (job.data.notes if job.data else []))
    if job.phase == "ready":
        early = f" It was stopped after step {step} of {job.steps}." if job.stopped and step < job.steps else ""
        return (
            f'<p role="status"><b>{as_html(job.result.name)} is ready</b> and chosen in {subject.tab}.{early}</p>'
            f"<p>Its folder: <code>{as_html(str(job.folder))}</code>; <code>--model</code> with it offers it at the "
            f"next start.</p>{notes}"
        )
    if job.phase == "reading":
        text, share = f"Reading the images: {job.done} of {job.total}", job.done / max(1, job.total)
    elif job.phase == "opening":
        counts = f": {job.done} of {job.total}" if job.total else ""
        text, share = f"{subject.opening}{counts}", job.done / max(1, job.total)
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


def predicted_html(task: str, base: str, kind: str, batch: int) -> str:
    """HTML: the memory of a step, predicted without running it."""
    step = predicted_step(base, TASKS[task].methods[kind](), batch, task)
    return (
        f'<p role="status">Predicted for {as_html(kind)}: <b>{_mib(step.total_bytes)}</b> per step, of which '
        f"{_mib(step.saved_bytes)} are saved activations; {step.trainable_parameters:,} of "
        f"{step.total_parameters:,} parameters are trained{SUBJECTS[task].counted}.</p>"
    )


def meter_html(job: Job, lines: list[dict[str, Any]], on_gpu: bool) -> str:
    """HTML: the predicted memory of a step, beside what was measured; and the metrics before and after."""
    if job.data is None or job.phase == "failed":
        return ""
    wish, subject = job.wish, SUBJECTS[job.wish.task]
    step = predicted_step(wish.base, TASKS[wish.task].methods[wish.kind](), job.batch_size, wish.task)
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
    now = f"<p>{what}, peak so far: {_mib(peak)}. {subject.predicted}</p>" if peak else ""
    return f"<h3>Memory, {job.batch_size} images per step</h3>{chart}{now}{_metrics(report, subject)}"


def _metrics(report: dict[str, Any], subject: Subject) -> str:
    if not report:
        return ""
    rows = [
        (f"{what}, {name}", report[key].get(metric, 0.0) / 100)
        for metric, what in subject.metrics.items()
        for key, name in (("before", "base"), ("after", "adapter"))
    ]
    title = f"<h3>{subject.score} on the {'training' if report['split'] == 'train' else 'held-out'} images</h3>"
    return title + bars(rows, lambda share: f"{100 * share:.1f} %", label=f"{subject.score} before and after")


def _mib(count: float) -> str:
    return f"{count / MIB:,.1f} MiB"
