"""Asking for a tab's answer: by a click, a key, an example, or the page's opening.

Whatever asks for the same answer is one event of Gradio (:func:`on_asking`), so that the answer that was asked for
last is the one that stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import get_blocks_context

from tabs.common import told


class Asking(NamedTuple):
    """The event that all requests for an answer are, and a state: an event that sets it to :func:`now` asks, too."""

    event: Any
    asked: gr.State


def on_page(
    events: Iterable[Any], function: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any
) -> Any:
    """Run ``function`` on any of these page events; the API uses :func:`endpoint` instead."""
    return gr.on(list(events), told(function), inputs, outputs, api_visibility="private", **options)


def on_asking(
    function: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    by: Iterable[Any],
    after: Iterable[Any] = (),
    opening: Callable[[], bool] | None = None,
    **options: Any,
) -> Asking:
    """Set ``outputs`` to what ``function`` answers to ``inputs``, whoever asks.

    While one answer is on its way, the next request waits until it has arrived, and then takes the inputs as they are.
    So no answer replaces one that was asked for later; least of all the one that a tab opens with.

    Args:
        by: events of the page that ask, such as ``button.click``.
        after: returned by other events, such as an example that fills the inputs: once they succeed, they ask.
        opening: whether to ask as soon as a visitor opens the page; the inputs' first values are the question.
        options: of the event.
    """
    asked = gr.State(0)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    for event in after:
        # Gradio drops a click on an example while the one before is still being filled in.
        get_blocks_context().root_block.fns[event["id"]].trigger_mode = "always_last"
        event.success(now, None, asked, **quiet)
    if opening is not None:
        on_opening(lambda: now() if opening() else gr.skip(), [asked])
    options = {"trigger_mode": "always_last", **options}
    return Asking(on_page([*by, asked.change], function, inputs, outputs, **options), asked)


def now() -> int:
    """A new value for :attr:`Asking.asked`."""
    return time.monotonic_ns()


def on_opening(function: Callable[..., Any], outputs: list[Any]) -> None:
    """Set ``outputs`` to what ``function`` returns when a visitor opens the page.

    It may come late, so ``outputs`` must be none that a visitor's own request sets; for answers, see :func:`on_asking`.
    """
    root: Any = get_blocks_context()
    root.root_block.load(told(function), None, outputs, api_visibility="private", show_progress="hidden")
