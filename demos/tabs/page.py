"""The page: title, about line and the tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tabs import ask, classify, ground, memory, search, video
from tabs.common import Studio, as_html, endpoint

TABS = {"Search": search, "Video search": video, "Ask": ask, "Ground": ground, "Classify": classify, "Memory": memory}
QUEUE, THREADS = 128, 32
"""Maximum number of requests that wait, and that run, at the same time."""


def build_page(studio: Studio) -> gr.Blocks:
    """The app, ready to launch."""
    with gr.Blocks(title="vlkit", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# vlkit\nA frozen CLIP with a small adapter, in your browser.", elem_id="title")
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name) as opened:
                    tab.build(studio, opened) if tab is memory else tab.build(studio)
        gr.HTML(about_line(studio.about), elem_id="about")
        endpoint("about", lambda: studio.about, [])
    return page.queue(max_size=QUEUE, default_concurrency_limit=8)


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
