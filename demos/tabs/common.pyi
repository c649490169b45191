"""What the tabs share: the state of the app, errors as sentences, endpoints, the picture input and bars."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlkit.data.images import MediaError
from vlkit.demo.album import Album
from vlkit.errors import UserError
from vlkit.serving import Models, PictureLibrary, open_upload

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
        library: the pictures to search.
        album: the demo pictures and clips, with what is known of them: examples to click.
        own_pictures: whether the library is the user's folder instead of the album's.
        about: a line on base, adapters, device and precision.
    """

    models: Models
    library: PictureLibrary
    album: Album
    own_pictures: bool
    about: str

class PictureInput(gr.Image):
    """An image input that gives the handler the uploaded picture, opened under our limits instead of Gradio's."""

    is_template = True

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(
            label=label, type="filepath", sources=["upload", "clipboard"], buttons=["fullscreen"], **options
        )

    def preprocess(self, payload: Any) -> Image.Image | None:
        """The RGB picture; what is wrong with it is told in a sentence."""
        if payload is None:
            return None
        return told(open_upload)(payload.path, payload.orig_name or "")
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

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
        # Shown as HTML: a file name must not become markup.
        return gr.Error(html.escape(str(error), quote=False), title="Sorry", print_exception=False)
    log.error("a request failed", exc_info=error)
    return gr.Error("This request failed; the log of the server says why.", title="Sorry", print_exception=False)

def endpoint(name: str, function: Callable[..., Any], inputs: list[Any], **options: Any) -> None:
    """Offer ``function`` to programs as ``/name``; it answers with JSON. The page itself does not show it."""
    trigger, answer = gr.Button(visible=False), gr.JSON(visible=False, label="answer")
    trigger.click(told(function), inputs, answer, api_name=name, **options)

def on_page(events: Iterable[Any], function: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any):
    """Run ``function`` on any of these events of the page; programs have :func:`endpoint`."""
    return gr.on(list(events), told(function), inputs, outputs, api_visibility="private", **options)

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
            f'<li><span class="name">{swatch}{html.escape(name)}</span><span class="value">{shown(share)}</span>'
            f'<span class="track" aria-hidden="true"><span class="fill" style="width:{width:.1f}%;{colour}"></span>'
            "</span></li>"
        )
    return f'<ol class="bars" aria-label="{html.escape(label)}">{"".join(items)}</ol>'

def percent(share: float) -> str:
    """``0.123`` -> ``12.3 %``."""
    return f"{100 * share:.1f} %"

def short(path: Path, limit: int = 40) -> str:
    """The end of a path that is too long to show."""
    text = str(path)
    return text if len(text) <= limit else f"…{text[-limit:]}"
