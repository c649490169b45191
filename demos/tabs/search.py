"""Search: images by text or by image, and captions by image, with all loaded models side by side."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from tabs.arrivals import arrivals, picker
from tabs.asking import now, on_asking, on_opening
from tabs.common import (
    MOST_RESULTS,
    Studio,
    bars,
    endpoint,
    image_input,
    lead,
    show_progress,
    status_of,
)
from tabs.own_images import build_adding
from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.index import Term, query_vector, text_terms
from vlkit.serving import (
    AddedImages,
    Found,
    check_count,
    check_text,
    preview_of,
    rank_texts,
    search_images,
)
from vlkit.serving.added_adapters import MOST_ADDED_ADAPTERS

MOST_TEXTS, PREVIEW = 200, 12
GALLERY: dict[str, Any] = {
    **{"columns": 3, "height": "auto", "object_fit": "contain", "buttons": ["fullscreen"], "interactive": False},
}
DEMO_QUERIES = [
    "a yellow house and a black snowman",
    "a dark blue pyramid close to a large white dining chair",
    "two chequered black oaks and a small purple daisy",
    "a white bird is right of a jet black heart",
    "a red chair near the top and a red candle in the lower right",
]
QUERIES = ["people outdoors", "food on a table", "an animal", "a street at night", "something red"]


@dataclass
class _Asking:
    """One way to ask: what the visitor gives, and what starts the search."""

    tab: gr.Tab
    given: Any
    button: gr.Button
    examples: gr.Examples


@dataclass
class _Results:
    """What every search shows, and the settings it reads (count, adapters, before / after, added images)."""

    whole: gr.Column
    library: gr.Gallery
    galleries: list[gr.Gallery]
    status: gr.HTML
    settings: list[Any]
    adding: gr.Column

    def rows(self, found: dict[str, list[Found]]) -> list[Any]:
        """Updates of ``library`` and ``galleries``."""
        full = [gr.Gallery(_shots(hits), label=name, visible=True) for name, hits in found.items()]
        rest = [gr.Gallery(visible=False)] * (len(self.galleries) - len(full))
        return [gr.Gallery(visible=False), *full, *rest]


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    lead(
        "Find images by text or by another image, or rank captions for an image. “dog + snow - car” adds and subtracts "
        "texts; double quotes protect a sign."
    )
    added = gr.State(AddedImages(), time_to_live=3600)
    with gr.Tabs():
        by_words, by_image = _lay_out_words(studio), _lay_out_image(studio)
        with gr.Tab("Image to text") as captions_tab:
            _build_words(studio)
    results = _lay_out_results(studio, added)
    for tab in (by_words.tab, by_image.tab, captions_tab):
        visible = tab is not captions_tab
        tab.select(lambda visible=visible: gr.Column(visible=visible), None, results.whole, api_visibility="private")
    asked = _wire(studio, by_words, by_image, results)
    with results.adding:
        build_adding(studio, by_words.given, asked, added, results.status, partial(_status, studio))
    _build_endpoints(studio, by_words, by_image, count=results.settings[0])
    show_progress(studio.library, results.status, lambda added: _status(studio, added), [added])


def _lay_out_words(studio: Studio) -> _Asking:
    with gr.Tab("By words") as tab:
        with gr.Row():
            text = gr.Textbox(
                label="What are you looking for?", max_lines=2, scale=5, elem_id="search-text", min_width=220
            )
            button = gr.Button("Search", variant="primary", scale=0, min_width=120, elem_id="search-button")
        queries = QUERIES if studio.own_images else DEMO_QUERIES
        examples = gr.Examples(queries, text, api_visibility="private", label="Try")
    return _Asking(tab, text, button, examples)


def _lay_out_image(studio: Studio) -> _Asking:
    with gr.Tab("By image") as tab, gr.Row():
        image = image_input("Find images like this one", height=240, elem_id="search-image")
        with gr.Column():
            examples = gr.Examples(_images(studio), image, api_visibility="private", label="Try")
            button = gr.Button("Search", variant="primary", elem_id="search-image-button")
    return _Asking(tab, image, button, examples)


def _lay_out_results(studio: Studio, added: gr.State) -> _Results:
    names = list(studio.models.adapters)
    with gr.Column() as whole:
        before = gr.Checkbox(
            bool(studio.models.zero_shot),
            label="Before / after: also show the base without adapter",
            elem_id="before-after",
            container=False,
        )
        library = gr.Gallery(
            preview(studio),
            label="The library" if studio.own_images else "Demo images, in a style new to the base",
            elem_id="library",
            elem_classes="library",
            **GALLERY | {"columns": 6},
        )
        with gr.Row():
            spare = MOST_ADDED_ADAPTERS if studio.adapters else 0
            galleries = [_gallery(name) for name in [*studio.models.retrieval, *[""] * spare]]
        status = gr.HTML(_status(studio, AddedImages()), elem_id="index-status", elem_classes="status")
        with gr.Accordion("Settings", open=False):
            count = gr.Slider(1, MOST_RESULTS, value=6, step=1, label="Results")
            shown = gr.CheckboxGroup(names, value=names, label="Adapters", visible=len(names) > 1)
            arrivals().follow(shown, lambda: _choice_of_adapters(studio, names))
        adding = gr.Column()
    return _Results(whole, library, galleries, status, [count, shown, before, added], adding)


def _wire(studio: Studio, by_words: _Asking, by_image: _Asking, results: _Results) -> Any:
    """Let both ways to ask fill the results; returns what starts a search by words."""
    outputs = [results.library, *results.galleries]

    def search_words(text: str, count: int, shown: list[str], before: bool, added: AddedImages) -> list[Any]:
        found = find(studio, check_text(text, "query"), count, wanted(studio, shown, before), added)
        return results.rows(found)

    def search_image(
        image: Image.Image | None, count: int, shown: list[str], before: bool, added: AddedImages
    ) -> list[Any]:
        return results.rows(find(studio, given(image), count, wanted(studio, shown, before), added))

    def linked(request: gr.Request) -> list[Any]:
        """Ask for what a link that ends in ``?q=TEXT`` asks; without one, nothing changes."""
        query = request.query_params.get("q", "").strip()
        return [query or gr.skip(), now() if query and studio.library.finished else gr.skip()]

    by, after = [by_words.button.click, by_words.given.submit], [by_words.examples.load_input_event]
    words = on_asking(search_words, [by_words.given, *results.settings], outputs, by, after)
    on_opening(linked, [by_words.given, words.asked])
    by, after = [by_image.button.click], [by_image.examples.load_input_event]
    # Both set the same galleries: a search by image takes the place of one by words that is on its way.
    on_asking(search_image, [by_image.given, *results.settings], outputs, by, after, cancels=[words.event])
    return words.asked


def _build_endpoints(studio: Studio, by_words: _Asking, by_image: _Asking, count: gr.Slider) -> None:
    """Both searches for programs."""
    model = gr.Textbox(visible=False, label="Model")

    def search(text: str, count: int = 6, model: str | None = None) -> dict[str, Any]:
        """Images for a text: {"model", "results": [{"picture": its file name, "score"}]}, best first."""
        return _answer(find(studio, check_text(text, "query"), count, _one(studio, model)))

    def search_by_picture(image: Image.Image | None, count: int = 6, model: str | None = None) -> dict[str, Any]:
        """Images like an image; same format as search."""
        return _answer(find(studio, given(image), count, _one(studio, model)))

    with by_words.tab:
        endpoint("search", search, [by_words.given, count, model], concurrency_limit=16)
    with by_image.tab:
        endpoint("search_by_picture", search_by_picture, [by_image.given, count, model])


def preview(studio: Studio) -> list[tuple[Image.Image, str]]:
    """Some images of the library, to open the page with; none if the folder cannot be read."""
    try:
        return preview_of(studio.library, PREVIEW)
    except UserError:
        return []  # the status line says why


def find(
    studio: Studio, query: str | Image.Image, count: float, models: list[str], added: AddedImages | None = None
) -> dict[str, list[Found]]:
    """Search with every model in ``models``.

    Raises:
        UserError: the count is out of range, the query has no terms, or nothing is indexed yet.
    """
    k = check_count(count, "number of results", MOST_RESULTS)
    rows = {}
    for name in models:
        pipeline = studio.models.retrieval[name]
        terms = text_terms(query) if isinstance(query, str) else [Term(query, kind="image")]
        vectors = query_vector(terms, pipeline)
        rows[name] = search_images(studio.library, name, vectors, k, added)[0]
    return rows


def wanted(studio: Studio, adapters: list[str], before: bool) -> list[str]:
    """Names of the models to show: the chosen adapters and, with ``before``, the bases without one."""
    return [n for n in studio.models.retrieval if n in adapters or (before and n in studio.models.zero_shot)]


def given(image: Image.Image | None) -> Image.Image:
    """The image.

    Raises:
        UserError: there is none.
    """
    if image is None:
        raise UserError("There is no image yet; upload one or click an example.")
    return image


def _build_words(studio: Studio) -> None:
    captions = [entry.captions[0] for entry in studio.album.about_images[::4]]
    with gr.Row():
        image = image_input("Image to describe", height=240, elem_id="words-image")
        with gr.Column():
            texts = gr.Textbox("\n".join(captions), label="Captions to rank, one per line", lines=6, max_lines=6)
            model = picker(studio.models.retrieval)
            button = gr.Button("Choose captions", variant="primary", elem_id="words-button")
    result = gr.HTML(elem_id="words-result")
    examples = gr.Examples(_images(studio, step=4), image, api_visibility="private", label="Try")

    def ranked(image: Image.Image | None, texts: str, model: str | None) -> list[tuple[str, float]]:
        lines = [line.strip() for line in (texts or "").splitlines() if line.strip()]
        if not lines or len(lines) > MOST_TEXTS:
            raise UserError(f"Give 1 to {MOST_TEXTS} captions, one per line.")
        lines = [check_text(line, "caption") for line in lines]
        return rank_texts(studio.models.retrieval[next(iter(_one(studio, model)))], given(image), lines)

    def show(image: Image.Image | None, texts: str, model: str | None) -> str:
        return bars(ranked(image, texts, model)[:5], lambda score: f"{score:.3f}", label="Captions, best first")

    def choose_captions(image: Image.Image | None, texts: str, model: str | None = None) -> list[dict[str, Any]]:
        """Captions (one per line) for an image: [{"text", "score"}], best first."""
        return [{"text": text, "score": score} for text, score in ranked(image, texts, model)]

    on_asking(show, [image, texts, model], [result], by=[button.click], after=[examples.load_input_event])
    endpoint("choose_captions", choose_captions, [image, texts, model])


def _gallery(name: str) -> gr.Gallery:
    return gr.Gallery(
        label=name,
        visible=False,
        min_width=300,
        elem_classes="shots",
        **GALLERY,
    )


def _shots(found: list[Found]) -> list[tuple[Image.Image, str]]:
    """Thumbnails with their captions; files that have gone or were damaged since they were indexed are left out."""
    shown = []
    for one in found:
        with contextlib.suppress(MediaError, OSError):
            shown.append((one.thumbnail(), f"{one.score:.3f} {one.name}"))
    return shown


def _answer(rows: dict[str, list[Found]]) -> dict[str, Any]:
    name, found = next(iter(rows.items()))
    return {"model": name, "results": [{"picture": f.name, "score": round(f.score, 6)} for f in found]}


def _one(studio: Studio, model: str | None) -> list[str]:
    names = list(studio.models.retrieval)
    if model and model not in names:
        raise UserError(f"There is no model {model!r}; the loaded models are {', '.join(names)}.")
    return [model or names[0]]


def _choice_of_adapters(studio: Studio, first: list[str]) -> gr.CheckboxGroup:
    """All adapters; chosen is the newest that arrived, else those of the start."""
    names = list(studio.models.adapters)
    return gr.CheckboxGroup(names, value=names[-1:] if len(names) > len(first) else first, visible=len(names) > 1)


def _images(studio: Studio, step: int = 16) -> list[list[str]]:
    return [[str(studio.album.images / entry.name)] for entry in studio.album.about_images[::step][:5]]


def _status(studio: Studio, added: AddedImages, refused: list[str] | None = None) -> str:
    own = [f"{len(added.names)} added by you"] if added.names else []
    what = "images of your folder" if studio.own_images else "demo images"
    return status_of(studio.library, what, own + (refused or []))
