"""Moments: when a sentence is true in a long video, a timeline with the saliency of its clips, and a summary."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import gradio as gr

from tabs.arrivals import picker
from tabs.asking import on_asking, on_page
from tabs.common import Studio, as_html, chosen, endpoint, lead, no_model
from tabs.examples import stored_examples, worked
from vlkit.errors import UserError
from vlkit.serving import check_count, check_text
from vlkit.tasks.moment_retrieval.evaluate import Found
from vlkit.tasks.moment_retrieval.pipeline import best_windows, clip_scores
from vlkit.tasks.moment_retrieval.summary import summary_of, write_summary

MOST_MOMENTS = 10
LONGEST_SUMMARY = 600
WIDTH, HEIGHT = 600, 90


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("moment_retrieval", {})
    lead("Find the moment of a long video that a sentence describes, or make a summary.")
    if not models:
        no_model("moment_retrieval", "moments")
        return
    rows = [[str(studio.album.films / film.name), film.queries[0][0]] for film in studio.album.about_films]

    def answer(video: str | None, text: str, model: str | None) -> Found:
        if not video:
            raise UserError("There is no video; upload one, or choose an example.")
        return chosen(models, model).answer(video, [check_text(text, "query")])[0]

    def parts_of(found: Found, seconds: float) -> list[tuple[float, float]]:
        """The parts of a summary."""
        return summary_of(found, float(check_count(seconds, "number of seconds", LONGEST_SUMMARY)))

    def clip_of(video: str, parts: list[tuple[float, float]], folder: Path | None = None) -> Path:
        """The file with the parts of a summary one after the other, in ``folder`` or one that ends with the demo."""
        name = hashlib.sha256(os.fsencode(f"{video}|{parts}")).hexdigest()[:24]
        path = (folder or Path(os.environ["GRADIO_TEMP_DIR"]) / "summaries") / f"{name}.mp4"
        if not path.exists():
            write_summary(video, parts, path)
        return path

    def example(video: str, text: str) -> tuple[str, list[tuple[float, float]]]:
        """What the tab opens with: the moments, and the parts of a summary."""
        found = answer(video, text, None)
        return timeline(found, best_windows(found, 3)), parts_of(found, 10)

    moments, parts = worked(studio, "moments", example, Path(rows[0][0]), rows[0][1], read=str) or (None, None)
    # Its clip takes half a second, at every start if it were not kept.
    summary = parts and str(clip_of(rows[0][0], [(start, end) for start, end in parts], stored_examples()))
    with gr.Row():
        with gr.Column():
            video = gr.Video(rows[0][0], label="Video", sources=["upload"], height=320, elem_id="moments-video")
            text = gr.Textbox(rows[0][1], label="What happens?", max_lines=2, elem_id="moments-text")
            count = gr.Slider(1, MOST_MOMENTS, value=3, step=1, label="Moments")
            seconds = gr.Slider(2, 60, value=10, step=1, label="Length of a summary in seconds")
            model = picker(models)
            with gr.Row():
                button = gr.Button("Find it", variant="primary", elem_id="moments-button")
                shorten = gr.Button("Make a summary", elem_id="summary-button")
        with gr.Column():
            line = gr.HTML(moments, elem_id="moments-line")
            short = gr.Video(
                summary,
                label="Summary",
                interactive=False,
                height=320,
                visible=summary is not None,
                buttons=["download"],
                elem_id="moments-summary",
            )
    examples = gr.Examples(rows, [video, text], api_visibility="private", label="Try")

    def show(video: str | None, text: str, count: float, model: str | None) -> str:
        k = check_count(count, "number of moments", MOST_MOMENTS)
        found = answer(video, text, model)
        return timeline(found, best_windows(found, k))

    def shortened(video: str | None, text: str, seconds: float, model: str | None) -> tuple[str, Any]:
        found = answer(video, text, model)
        parts = parts_of(found, seconds)
        bars = [(start, end, 1.0) for start, end in parts]
        return timeline(found, bars, "Parts of the summary"), gr.Video(str(clip_of(str(video), parts)), visible=True)

    def find_moments(video: str | None, text: str, count: float = 3, model: str | None = None) -> dict[str, Any]:
        """Moments for a text and the saliency of each clip: {"moments", "saliency"}, times in seconds."""
        k = check_count(count, "number of moments", MOST_MOMENTS)
        found = answer(video, text, model)
        return {"moments": _named(best_windows(found, k)), "saliency": _named(clip_scores(found))}

    inputs = [video, text, count, model]
    on_asking(show, inputs, [line], by=[button.click, text.submit], after=[examples.load_input_event])
    on_page([shorten.click], shortened, [video, text, seconds, model], [line, short])
    endpoint("moments", find_moments, inputs)


def _named(rows: list[tuple[float, float, float]]) -> list[dict[str, float]]:
    return [{"start": start, "end": end, "score": score} for start, end, score in rows]


def timeline(found: Found, moments: list[tuple[float, float, float]], title: str = "Moments, best first") -> str:
    """HTML: the saliency curve over time with the moments as bars, and a list of them; a click plays from there.

    The element says the length of the video and the peak of the curve in seconds (``data-seconds``, ``data-peak``).
    """
    length = max(found.timeline.duration, 1e-6)
    place = lambda time: WIDTH * time / length  # noqa: E731
    bars = "".join(
        f'<rect x="{place(start):.1f}" y="0" width="{place(end - start):.1f}" height="{HEIGHT}" '
        f'fill="var(--primary-500)" opacity="{0.15 + 0.35 * score:.2f}"/>'
        for start, end, score in moments
    )
    rows = clip_scores(found)
    low, high = min(row[2] for row in rows), max(row[2] for row in rows)
    heights = [HEIGHT - 6 - (HEIGHT - 12) * (score - low) / max(high - low, 1e-9) for _, _, score in rows]
    peak = max(rows, key=lambda row: row[2])
    curve = " ".join(f"{place((s + e) / 2):.1f},{y:.1f}" for (s, e, _), y in zip(rows, heights, strict=True))
    listed = "".join(
        f"<li><button type='button' onclick=\"{_play(f'{start:.2f}')}\">{clock(start)} to {clock(end)}</button> "
        f'<span class="value">{score:.2f}</span></li>'
        for start, end, score in moments
    )
    click = _play(f"event.offsetX / this.clientWidth * {length:.3f}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" height="{HEIGHT}" role="img" preserveAspectRatio="none" '
        f'data-seconds="{length:.2f}" data-peak="{(peak[0] + peak[1]) / 2:.2f}" '
        f'style="cursor:pointer;border:1px solid var(--border-color-primary)" onclick="{click}" '
        f'aria-label="Saliency over {clock(length)}; a click plays from there">{bars}'
        f'<polyline points="{curve}" fill="none" stroke="var(--body-text-color)" stroke-width="1.5"/></svg>'
        f'<div class="axis" aria-hidden="true"><span>{clock(0)}</span><span>{clock(length / 2)}</span>'
        f"<span>{clock(length)}</span></div>"
        '<p class="lead">The curve is the saliency of each clip; a click plays from there.</p>'
        f"<p><b>{as_html(title)}</b></p><ol>{listed}</ol>"
    )


def _play(seconds: str) -> str:
    """JavaScript that plays the video from a time."""
    return f"const v=document.querySelector('#moments-video video');if(v){{v.currentTime={seconds};v.play()}}"


def clock(seconds: float) -> str:
    """``1:04.0``: minutes and seconds."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
