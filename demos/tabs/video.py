"""Video search: the clip that a text describes, with its time range."""

from __future__ import annotations

from tabs.common import Studio, lead, no_model


def build(studio: Studio) -> None:
    """Lay out the tab; call it within a ``gr.Tab``."""
    lead("Find the moment in your videos that a sentence describes.")
    no_model("video_retrieval", "videos")
