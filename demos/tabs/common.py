"""Shared code of the tabs: the app's state, error messages, endpoints, the image input and bars."""

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
from gradio.context import get_blocks_context
from PIL import Image

from tabs.start import no_stub_files
from vlkit.cli.show import visible
from vlkit.data.images import MediaError
from vlkit.drawn.album import Album
from vlkit.errors import UserError
from vlkit.serving import Library, Models, open_upload
from vlkit.serving.added_adapters import AddedAdapters
from vlkit.serving.training import Trainer
from vlkit.serving.uploaded import Upload

log = logging.getLogger(__name__)

MOST_RESULTS = 24
TRAIN = {
    "vqa": "python tasks/vqa/train.py --output runs/vqa",
    "captioning": "python tasks/captioning/train.py --output runs/captioning",
    "grounding": "python tasks/grounding/train.py --output runs/grounding",
    "moment_retrieval": "python tasks/moment_retrieval/train.py --output runs/moments",
    "classification": "python tasks/classification/train.py --output runs/classification",
    "video_retrieval": "python tasks/video_retrieval/train.py --output runs/video",
}
"""Training command for a tab without a model."""
SAVE_JSON = """(value) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2)], {type: "application/json"}));
  link.download = "%s.json"; link.click(); URL.revokeObjectURL(link.href);
}"""
"""JavaScript that saves a value as a file."""


@dataclass
class Studio:
    """State shared by the tabs.

    Attributes:
        models: the loaded adapters.
        library: the images to search.
        clips: the videos to search; None without a model for them.
        album: the demo images and clips with their annotations, used as examples.
        own_images, own_videos: whether they are the user's folders instead of the album's.
        about: bases, adapters, device and precision.
        adapters: takes adapters that visitors upload or train; None if visitors may not.
        trainer: trains adapters for visitors; None without ``--train``.
    """

    models: Models
    library: Library
    clips: Library | None
    album: Album
    own_images: bool
    own_videos: bool
    about: dict[str, Any]
    adapters: AddedAdapters | None = None
    trainer: Trainer | None = None


with no_stub_files():

    class ImageInput(gr.Image):
        """An image input whose handler gets the RGB image, opened under our limits instead of Gradio's."""

        is_template = True

        def preprocess(self, payload: Any) -> Image.Image | None:
            """Report a bad file in one sentence; Gradio itself would decode it and show a traceback."""
            return None if payload is None else told(open_upload)(payload.path, payload.orig_name or "")

    class FilesInput(gr.File):
        """An input for files whose handler gets them with the visitor's names: Gradio's own lack some characters."""

        is_template = True

        def preprocess(self, payload: Any) -> list[Upload]:
            """The uploaded files; none if there are none."""
            files = [] if payload is None else getattr(payload, "root", payload)
            files = files if isinstance(files, list) else [files]
            return [Upload(Path(file.path), Path(file.orig_name or file.path).name) for file in files]

    class ModelChoice(gr.Dropdown):
        """A choice of model. Models arrive while the page is open, so :func:`chosen` checks the name, not Gradio."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """The name as it came."""
            return payload


def image_input(label: str, **options: Any) -> ImageInput:
    """A place to upload or paste an image."""
    return ImageInput(label=label, type="filepath", sources=["upload", "clipboard"], buttons=["fullscreen"], **options)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show a handler's errors as one sentence in the page: user errors unchanged, others logged and reported."""
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
    return gr.Error("This request failed; see the server log for the reason.", duration=None, print_exception=False)


def as_html(text: str, quote: bool = True) -> str:
    """Escape a text that contains user input, so that HTML shows it character by character.

    File names, queries, answers and model names pass through here and never enter ``gr.Markdown``.

    Args:
        quote: also escape quotation marks; only attributes need it.
    """
    return html.escape(visible(text), quote=quote)


def endpoint(name: str, function: Callable[..., Any], inputs: list[Any], download: bool = True, **options: Any) -> None:
    """Offer ``function`` as the API endpoint ``/name``, which returns JSON.

    Args:
        download: put a button here that saves what the endpoint answers to the tab's inputs as ``name.json``.
        options: of the event.
    """
    label, look = "Download the result as JSON", {"size": "sm", "elem_id": f"{name}-json", "elem_classes": "save"}
    trigger = gr.Button(label, visible=download, **look)
    answer = gr.JSON(visible=False, label="answer")
    done = trigger.click(told(function), inputs, answer, api_name=name, **options)
    if download:
        done.success(None, answer, None, js=SAVE_JSON % name, api_visibility="private")


def chosen(models: dict[str, Any], name: str | None) -> Any:
    """The model of that name; the first if none was named.

    Raises:
        UserError: there is none of that name.
    """
    if name and name not in models:
        raise UserError(f"There is no model {name!r}; the loaded models are {', '.join(models)}.")
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
    """HTML with the number of searchable items, and a progress bar while the folder is being indexed.

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
    """The line that describes a tab."""
    gr.Markdown(text, elem_classes="lead")


def bars(
    rows: Iterable[tuple[str, float]], shown: Callable[[float], str], colours: list[str] | None = None, label: str = ""
) -> str:
    """HTML of a list of bars.

    Args:
        rows: (name, share of the full width, 0 to 1).
        shown: share -> the text beside the bar.
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
