"""Adapters that arrive while the page is open, by upload or training: what shows them, and what announces them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context

from tabs.asking import on_page
from tabs.common import ModelChoice


class Arrivals:
    """Adapters that arrive while the page is open: what shows them, and what announces them."""

    def __init__(self) -> None:
        self._followers: list[tuple[Any, Callable[[], Any]]] = []
        self._announcers: list[Any] = []

    def follow(self, component: Any, current: Callable[[], Any]) -> None:
        """Set ``component`` to ``current()`` when an adapter arrives, and when a visitor opens the page."""
        self._followers.append((component, current))

    def announce(self, state: gr.State) -> None:
        """A handler that changes ``state`` says that an adapter arrived."""
        self._announcers.append(state)

    def connect(self, page: gr.Blocks) -> None:
        """Once everything is laid out: renew what follows, at each announcement and when the page is opened."""
        components = [component for component, _ in self._followers]

        def renew() -> Any:
            found = [current() for _, current in self._followers]
            return found if len(found) > 1 else found[0]

        if components and self._announcers:
            events = [page.load, *(state.change for state in self._announcers)]
            # An adapter may arrive while the page is still being renewed for its opening: that call is not dropped.
            on_page(events, renew, [], components, show_progress="hidden", trigger_mode="always_last")


def arrivals() -> Arrivals:
    """The page's own, while it is laid out."""
    root: Any = get_blocks_context().root_block
    if not hasattr(root, "arrivals"):
        root.arrivals = Arrivals()
    return root.arrivals


def picker(
    models: dict[str, Any] | Callable[[], dict[str, Any]], newest: Callable[[], str | None] = lambda: None
) -> gr.Dropdown:
    """A choice of model, shown only if there are several; models that arrive later are added to it.

    Args:
        models: name -> model, or what returns them.
        newest: name of the model to choose when one arrived; None leaves the choice as it is.
    """

    def names() -> list[str]:
        return list(models() if callable(models) else models)

    choice = ModelChoice(names(), value=names()[0], label="Model", visible=len(names()) > 1, interactive=True)

    def current() -> gr.Dropdown:
        last = newest()
        chosen: dict[str, Any] = {} if last is None else {"value": last}
        return gr.Dropdown(names(), visible=len(names()) > 1, **chosen)

    arrivals().follow(choice, current)
    return choice
