"""Serve saved adapters to several people at once: loading, searching folders, limits. Needs no web server.

models = load_models([Path("runs/mine")])
library = Library(pictures_in(Path("pictures")), models.retrieval)
library.update()
name, pipeline = next(iter(models.adapters.items()))
found = search_pictures(library, name, pipeline.embed_texts(["a plane on a lake"]), k=5)
"""

from vlkit.serving.clips import FoundClip, search_clips, videos_in
from vlkit.serving.library import Library
from vlkit.serving.limits import check_count, check_text, open_upload
from vlkit.serving.models import Models, load_models, shipped_adapters
from vlkit.serving.pictures import AddedPictures, Found, pictures_in, rank_texts, search_pictures

__all__ = [
    "AddedPictures",
    "Found",
    "FoundClip",
    "Library",
    "Models",
    "check_count",
    "check_text",
    "load_models",
    "open_upload",
    "pictures_in",
    "rank_texts",
    "search_clips",
    "search_pictures",
    "shipped_adapters",
    "videos_in",
]
