"""What the tabs share: the state of the app, errors as sentences, endpoints, the image input and bars."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr
from gradio.context import get_blocks_context
from PIL import Image

from vlkit.cli.show import visible
from vlkit.data.images import MediaError
from vlkit.drawn.album import Album
from vlkit.errors import UserError
from vlkit.serving import Library, Models, open_upload

log = logging.getLogger(__name__)

MOST_RESULTS = 24
TRAIN = {
    "vqa": "python tasks/vqa/train.py --output runs/vqa",
    "grounding": "python tasks/grounding/train.py --output runs/grounding",
    "video_retrieval": "python tasks/video_retrieval/train.py --output runs/video",
}
"""How to get a model for a tab that has none."""


@dataclass
class Studio:
    """What the tabs work on.

    Attributes:
        models: the loaded adapters.
        library: the images to search.
        clips: the videos to search; None without a model for them.
        album: the demo images and clips, with what is known of them: examples to click.
        own_images, own_videos: whether they are the user's folders instead of the album's.
        about: bases, adapters, device and precision.
    """

    models: Models
    library: Library
    clips: Library | None
    album: Album
    own_images: bool
    own_videos: bool
    about: dict[str, Any]


# Gradio would write a stub file beside any module that defines a component.
with mock.patch("gradio.component_meta.create_or_modify_pyi"):

    class ImageInput(gr.Image):
        """An image input whose handler gets the RGB image, opened under our limits instead of Gradio's."""

        is_template = True

        def preprocess(self, payload: Any) -> Image.Image | None:
            """What is wrong with a file is told in a sentence; Gradio would decode it and answer with a traceback."""
            return None if payload is None else told(open_upload)(payload.path, payload.orig_name or "")


def image_input(label: str, **options: Any) -> ImageInput:
    """A place to upload or paste an image."""
    return ImageInput(label=label, type="filepath", sources=["upload", "clipboard"], buttons=["fullscreen"], **options)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let errors of a handler appear as a sentence in the page: ours as they are, others named and logged."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*args: Any) -> Any:
            try:
                yield from function(*args)
            except Exception as error:
                raise _sentence(error) from None

        return steps

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise _sentence(error) from None

    return call


def _sentence(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError | MediaError):
        return gr.Error(as_html(str(error), quote=False), duration=None, print_exception=False)
    log.error("a request failed", exc_info=error)
    return gr.Error("This request failed; the log of the server says why.", duration=None, print_exception=False)


def as_html(text: str, quote: bool = True) -> str:
    """A text of a user, or one that quotes it, as HTML that shows it character by character.

    File names, queries, answers and names of models go through here, and never into ``gr.Markdown``.

    Args:
        quote: escape quotation marks, too; only attributes need it.
    """
    return html.escape(visible(text), quote=quote)


def endpoint(name: str, function: Callable[..., Any], inputs: list[Any], **options: Any) -> None:
    """Offer ``function`` to programs as ``/name``; it answers with JSON. The page itself does not show it."""
    trigger, answer = gr.Button(visible=False), gr.JSON(visible=False, label="answer")
    trigger.click(told(function), inputs, answer, api_name=name, **options)


def on_page(
    events: Iterable[Any], function: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any
) -> Any:
    """Run ``function`` on any of these events of the page; programs have :func:`endpoint`."""
    return gr.on(list(events), told(function), inputs, outputs, api_visibility="private", **options)


def on_example(
    examples: gr.Examples, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any
) -> Any:
    """Run ``function`` once a clicked example has filled its inputs."""
    return examples.load_input_event.success(told(function), inputs, outputs, api_visibility="private", **options)


def picker(models: dict[str, Any]) -> gr.Dropdown:
    """A choice among models, shown only if there is one to make."""
    names = list(models)
    return gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, interactive=True)


def chosen(models: dict[str, Any], name: str | None) -> Any:
    """The model of that name; the first if none was named.

    Raises:
        UserError: there is none of that name.
    """
    if name and name not in models:
        raise UserError(f"There is no model {name!r} here; these are loaded: {', '.join(models)}.")
    return models[name or next(iter(models))]


def no_model(task: str, what: str) -> None:
    """The content of a tab whose task has no model."""
    command = TRAIN[task]
    folder = command.rpartition(" ")[2]
    gr.Markdown(
        f"**No model for {what} is loaded.** Train one, then start the demo with it:\n\n"
        f"```\n{command}\npython demos/app.py --model {folder}\n```",
        elem_id=f"no-{task}",
    )


def status_of(library: Library, what: str, notes: list[str] | None = None) -> str:
    """HTML of what can be found, and a progress bar while the folder is being indexed.

    Args:
        what: what the folder holds, in the plural.
        notes: sentences to add.
    """
    if library.error:
        return f'<p role="status">{as_html(library.error)}</p>'
    lines = [f"{len(library):,} {what}" + (f"; {len(library.left_out)} could not be read" if library.left_out else "")]
    lines += [as_html(sentence) for sentence in notes or []]
    if library.finished:
        return f'<p role="status">{"<br>".join(lines)}</p>'
    done, total = library.progress()
    share = 100 * done / total if total else 0
    return (
        f'<p role="status">Indexing, {done:,} of {total:,} done. So far: {"<br>".join(lines)}</p>'
        f'<div class="progress" role="progressbar" aria-label="indexing" aria-valuenow="{share:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><div style="width:{share:.1f}%"></div></div>'
    )


def show_progress(library: Library, status: gr.HTML, say: Callable[..., str], inputs: list[Any]) -> None:
    """Set ``status`` to ``say(*inputs)`` when the page is opened, and each second until the library is finished."""
    timer = gr.Timer(1.0, active=not library.finished)

    def tick(*values: Any) -> tuple[str, gr.Timer]:
        return say(*values), gr.Timer(active=not library.finished and library.error is None)

    for event in (timer.tick, get_blocks_context().root_block.load):
        event(tick, inputs, [status, timer], api_visibility="private", show_progress="hidden")


def lead(text: str) -> None:
    """The line that says what a tab does."""
    gr.Markdown(text, elem_classes="lead")


def bars(
    rows: Iterable[tuple[str, float]], shown: Callable[[float], str], colours: list[str] | None = None, label: str = ""
) -> str:
    """HTML of a list of bars.

    Args:
        rows: (name, share of the full width, 0 to 1).
        shown: share -> what is written beside it.
        colours: of the rows, as CSS; default the accent.
        label: what the list is, for screen readers.
    """
    items = []
    for number, (name, share) in enumerate(rows):
        colour = f"background:{colours[number]}" if colours else ""
        swatch = f'<span class="swatch" style="{colour}"></span>' if colours else ""
        width = 100 * min(max(share, 0.0), 1.0)
        items.append(
            f'<li><span class="name">{swatch}{as_html(name)}</span><span class="value">{shown(share)}</span>'
            f'<span class="track" aria-hidden="true"><span class="fill" style="width:{width:.1f}%;{colour}"></span>'
            "</span></li>"
        )
    return f'<ol class="bars" aria-label="{as_html(label)}">{"".join(items)}</ol>'


def percent(share: float) -> str:
    """``0.123`` -> ``12.3 %``."""
    return f"{100 * share:.1f} %"


def short(path: Path, limit: int = 40) -> str:
    """The end of a path that is too long to show."""
    text = str(path)
    return text if len(text) <= limit else f"…{text[-limit:]}"
