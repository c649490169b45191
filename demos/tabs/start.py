"""Starting sooner: most of the start is the import of large libraries."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection.

    Imports make millions of objects that live as long as the process, and the collector walks through all of them
    again and again: a tenth of the start. Afterwards it passes over them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def no_stub_files() -> Iterator[None]:
    """Components that are defined meanwhile get no stub file.

    Gradio writes one beside the source of each component class, its own included: 40 % of its import. It leaves out
    classes whose source file it cannot find.
    """
    with mock.patch("inspect.getfile", side_effect=OSError("stub files are not wanted")):
        yield


@contextlib.contextmanager
def no_early_app() -> Iterator[None]:
    """A page that is laid out meanwhile gets its web app when it is launched.

    Gradio makes one at each of three steps before that, with all its routes, and throws it away.
    """
    from gradio.routes import App

    with mock.patch.object(App, "create_app"):
        yield
