"""Serve saved adapters to several people at once: loading, searching folders, limits. Needs no web server.

models = load_models([Path("runs/mine")])
library = Library(images_in(Path("images")), models.retrieval)
library.update()
name, pipeline = next(iter(models.adapters.items()))
found = search_images(library, name, pipeline.embed_texts(["a plane on a lake"]), k=5)
"""

from vlkit.serving.clips import FoundClip, search_clips, videos_in
from vlkit.serving.images import AddedImages, Found, images_in, preview_of, rank_texts, search_images
from vlkit.serving.library import Library
from vlkit.serving.limits import check_count, check_text, open_upload
from vlkit.serving.models import Models, load_models, shipped_adapters

__all__ = [
    "AddedImages",
    "Found",
    "FoundClip",
    "Library",
    "Models",
    "check_count",
    "check_text",
    "images_in",
    "load_models",
    "open_upload",
    "preview_of",
    "rank_texts",
    "search_clips",
    "search_images",
    "shipped_adapters",
    "videos_in",
]
