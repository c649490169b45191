"""The page: title, about line and the tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tabs import ask, caption, classify, compare, ground, memory, moments, search, train, video
from tabs.arrivals import arrivals
from tabs.common import Studio, as_html, endpoint

TABS = {
    "Search": search,
    "Video search": video,
    "Ask": ask,
    "Caption": caption,
    "Ground": ground,
    "Moments": moments,
    "Classify": classify,
    "Compare": compare,
    "Memory": memory,
    "Train": train,
}
NEED_THEIR_TAB = (compare, train)
"""Tabs that do something when they are opened."""
QUEUE, THREADS = 128, 32
"""Maximum number of requests that wait, and that run, at the same time."""


def build_page(studio: Studio) -> gr.Blocks:
    """The app, ready to launch."""
    with gr.Blocks(title="vlkit", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(f"<h1>vlkit</h1><p>{headline(studio.about)}</p>", elem_id="title", padding=False)
        with gr.Tabs():
            for name, tab in TABS.items():
                if tab is train and studio.trainer is None:
                    continue
                with gr.Tab(name, id=name) as opened:
                    tab.build(studio, opened) if tab in NEED_THEIR_TAB else tab.build(studio)
        line = gr.HTML(about_line(studio.about), elem_id="about")
        arrivals().follow(line, lambda: about_line(studio.about))
        arrivals().connect(page)
        endpoint("about", lambda: studio.about, [], download=False)
    return page.queue(max_size=QUEUE, default_concurrency_limit=8)


def headline(about: dict[str, Any]) -> str:
    """What the page shows, in one sentence of HTML: base, adapters, and the bytes (float32) that were trained."""
    trained = [count for found in about["trained_parameters"].values() for count in found.values()]
    counts = dict.fromkeys((min(trained), max(trained)))
    parameters, size = (" to ".join(f"{each * count / 1e6:.2g}" for count in counts) for each in (1, 4))
    names = dict.fromkeys(name for names in about["adapters"].values() for name in names)
    kind = as_html(next(iter(names))) + " adapter" if len(names) == 1 else "adapter"
    bases = " and ".join(name for name in about["bases"] if not name.endswith(" text"))
    return (
        f"The CLIP <code>{as_html(bases)}</code> ({about['base_parameters'] / 1e6:.3g} M parameters) stays frozen; "
        f"one {kind} per task ({parameters} M parameters, {size} MB) was trained on top."
    )


def about_line(about: dict[str, Any]) -> str:
    """The facts in one line of HTML."""
    adapters = [f"{name} ({task.replace('_', ' ')})" for task, names in about["adapters"].items() for name in names]
    facts = {
        "base": ", ".join(about["bases"]),
        "adapters": ", ".join(adapters),
        "device": about["device"],
        "precision": about["precision"],
    }
    return " · ".join(f"<b>{key}</b> {as_html(value)}" for key, value in facts.items())
