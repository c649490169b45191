"""Moments: when a sentence is true in a long video, a timeline with the saliency of its clips, and a summary."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import gradio as gr

from tabs.arrivals import picker
from tabs.asking import on_asking, on_page
from tabs.common import Studio, chosen, endpoint, lead, no_model
from tabs.examples import stored_examples, worked
from tabs.timeline import LAYOUT, strip, timeline, write_strip
from vlkit.data.images import MediaError
from vlkit.data.video.clip_frames import duration_of
from vlkit.errors import UserError
from vlkit.serving import check_count, check_text
from vlkit.tasks.moment_retrieval.evaluate import Found
from vlkit.tasks.moment_retrieval.pipeline import best_windows, clip_scores
from vlkit.tasks.moment_retrieval.summary import summary_of, write_summary

MOST_MOMENTS = 10
LONGEST_SUMMARY = 600


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("moment_retrieval", {})
    lead("Find the moment of a long video that a sentence describes, or make a summary.")
    if not models:
        no_model("moment_retrieval", "moments")
        return
    rows = [[str(studio.album.films / name), text] for name, text, _ in studio.album.longest_moments()]

    def answer(video: str | None, text: str, model: str | None) -> Found:
        if not video:
            raise UserError("There is no video; upload one, or choose an example.")
        try:
            return chosen(models, model).answer(video, [check_text(text, "query")])[0]
        except MediaError as error:  # its path is the server's
            raise UserError(f"{Path(video).name}: cannot be used as a video ({error.reason}).") from None

    def parts_of(found: Found, seconds: float) -> list[tuple[float, float]]:
        """The parts of a summary."""
        return summary_of(found, float(check_count(seconds, "number of seconds", LONGEST_SUMMARY)))

    def example(video: str, text: str) -> tuple[str, list[tuple[float, float]]]:
        """What the tab opens with: the moments, and the parts of a summary."""
        found = answer(video, text, None)
        return timeline(found, best_windows(found, 3)), parts_of(found, 10)

    moments, parts = worked(studio, "moments", example, Path(rows[0][0]), rows[0][1], read=str) or (None, None)
    # Clip and film strip take half a second, at every start if they were not kept.
    summary = parts and str(clip_of(rows[0][0], [(start, end) for start, end in parts], stored_examples()))
    if moments:
        moments = strip_of(rows[0][0], duration_of(rows[0][0]), stored_examples()) + moments
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
        return strip_of(str(video), found.timeline.duration) + timeline(found, best_windows(found, k))

    def shortened(video: str | None, text: str, seconds: float, model: str | None) -> tuple[str, Any]:
        found = answer(video, text, model)
        parts = parts_of(found, seconds)
        line = timeline(found, [(start, end, 1.0) for start, end in parts], "Parts of the summary")
        return strip_of(str(video), found.timeline.duration) + line, gr.Video(
            str(clip_of(str(video), parts)), visible=True
        )

    def find_moments(video: str | None, text: str, count: float = 3, model: str | None = None) -> dict[str, Any]:
        """Moments for a text and the saliency of each clip: {"moments", "saliency"}, times in seconds."""
        k = check_count(count, "number of moments", MOST_MOMENTS)
        found = answer(video, text, model)
        return {"moments": _named(best_windows(found, k)), "saliency": _named(clip_scores(found))}

    inputs = [video, text, count, model]
    on_asking(show, inputs, [line], by=[button.click, text.submit], after=[examples.load_input_event])
    on_page([shorten.click], shortened, [video, text, seconds, model], [line, short])
    endpoint("moments", find_moments, inputs)


def clip_of(video: str, parts: list[tuple[float, float]], folder: Path | None = None) -> Path:
    """The file with parts of a video one after the other, in ``folder`` or one that ends with the demo."""
    path = _path(folder, ".mp4", video, parts)
    if not path.exists():
        write_summary(video, parts, path)
    return path


def strip_of(video: str, seconds: float, folder: Path | None = None) -> str:
    """HTML of a video's film strip, whose file is in ``folder`` or one that ends with the demo."""
    path = _path(folder, ".jpg", video, seconds, *LAYOUT)
    if not path.exists():
        write_strip(video, seconds, path)
    return strip(path.read_bytes(), seconds)


def _path(folder: Path | None, suffix: str, *about: Any) -> Path:
    """A file that depends on a video and more."""
    name = hashlib.sha256(os.fsencode("|".join(map(str, about)))).hexdigest()[:24]
    return (folder or Path(os.environ["GRADIO_TEMP_DIR"]) / "moments") / f"{name}{suffix}"


def _named(rows: list[tuple[float, float, float]]) -> list[dict[str, float]]:
    return [{"start": start, "end": end, "score": score} for start, end, score in rows]
