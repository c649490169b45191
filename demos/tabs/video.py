"""Video search: the moment that a sentence describes, playable, with its time range."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import gradio as gr

from tabs.arrivals import picker
from tabs.asking import on_asking, on_page
from tabs.common import (
    MOST_RESULTS,
    Studio,
    chosen,
    endpoint,
    lead,
    no_model,
    show_progress,
    status_of,
)
from vlkit.data.images import MediaError
from vlkit.drawn.album import AlbumClip
from vlkit.errors import UserError
from vlkit.index import query_vector, text_terms
from vlkit.serving import FoundClip, check_count, check_text, search_clips
from vlkit.serving.clips import cut_clip, still_of

SHOWN_CHARACTERS = 60
"""Gradio cuts longer examples."""
QUERIES = ["someone walks in", "a car drives past", "food is being cooked", "people talk at a table"]


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    models = studio.models.by_task.get("video_retrieval", {})
    lead("Find the moment in the videos that a sentence describes.")
    if not models or studio.clips is None:
        no_model("video_retrieval", "videos")
        return
    library = studio.clips
    what = "moments of your videos" if studio.own_videos else "demo clips"
    found = gr.State([])
    queries = QUERIES if studio.own_videos else [_example(clip) for clip in studio.album.about_clips[:5]]
    with gr.Row():
        text = gr.Textbox(queries[0], label="What happens?", max_lines=2, scale=5, elem_id="video-text", min_width=220)
        button = gr.Button("Search", variant="primary", scale=0, min_width=120, elem_id="video-button")
    examples = gr.Examples(queries, text, api_visibility="private", label="Try")
    model = picker(models)
    with gr.Row():
        player = gr.Video(
            label="Best match",
            interactive=False,
            autoplay=True,
            height=320,
            buttons=["download"],
            elem_id="video-player",
            visible=False,
        )
        gallery = gr.Gallery(
            label="All matches: click one to play it",
            columns=3,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_classes="shots",
            elem_id="video-matches",
            visible=False,
        )
    status = gr.HTML(status_of(library, what), elem_classes="status")
    count = gr.Slider(1, MOST_RESULTS, value=6, step=1, label="Results", visible=False)

    def find(text: str, count: float, model: str | None) -> list[FoundClip]:
        query = check_text(text, "query")
        k = check_count(count, "number of results", MOST_RESULTS)
        pipeline = chosen(models, model)
        name = model or next(iter(models))
        return search_clips(library, name, query_vector(text_terms(query), pipeline), k)[0]

    def show(text: str, count: float, model: str | None) -> tuple[Any, ...]:
        clips, shots = [], []
        for clip in find(text, count, model):
            with contextlib.suppress(MediaError):  # gone or damaged since it was indexed
                shots.append((still_of(clip), f"{clip.score:.3f} {clip.name}, {range_of(clip)}"))
                clips.append(clip)
        if not clips:
            raise UserError("The videos that were found are no longer there; start the demo again to index the folder.")
        return clips, gr.Gallery(shots, visible=True), play(clips[0])

    def pick(clips: list[FoundClip], event: gr.SelectData) -> Any:
        return play(clips[event.index])

    def search_video(text: str, count: float = 6, model: str | None = None) -> list[dict[str, Any]]:
        """Moments for a text: [{"video", "start", "end" in seconds, "score"}], best first."""
        return [
            {"video": c.name, "start": c.start, "end": c.end, "score": round(c.score, 6)}
            for c in find(text, count, model)
        ]

    inputs, outputs = [text, count, model], [found, gallery, player]
    by, after = [button.click, text.submit], [examples.load_input_event]
    on_asking(show, inputs, outputs, by, after, opening=lambda: library.finished)
    on_page([gallery.select], pick, [found], [player])
    endpoint("search_video", search_video, inputs)
    show_progress(library, status, lambda: status_of(library, what), [])


def _example(clip: AlbumClip) -> str:
    """The clip's most detailed sentence that Gradio shows in full, else the plainest."""
    return next((text for text in reversed(clip.captions) if len(text) <= SHOWN_CHARACTERS), clip.captions[0])


def play(clip: FoundClip, autoplay: bool = True) -> gr.Video:
    """The player with that moment, cut out once and cached while the demo runs."""
    name = hashlib.sha256(os.fsencode(f"{clip.path}|{clip.start}|{clip.end}")).hexdigest()[:24]
    path = Path(os.environ["GRADIO_TEMP_DIR"]) / "clips" / f"{name}.mp4"
    if not path.exists():
        cut_clip(clip, path)
    return gr.Video(str(path), label=f"{clip.name}, {range_of(clip)}", visible=True, autoplay=autoplay)


def range_of(clip: FoundClip) -> str:
    """``0:04.0 to 0:12.0``, minutes and seconds."""
    return " to ".join(f"{int(t // 60)}:{t % 60:04.1f}" for t in (clip.start, clip.end))
