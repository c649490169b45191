"""Serve saved adapters to several people at once: loading, searching folders, limits. Needs no web server.

models = load_models([Path("runs/mine")])
library = PictureLibrary(Path("pictures"), models.retrieval)
library.update()
found = library.search("SHERL (mine)", models.retrieval["SHERL (mine)"].embed_texts(["a plane on a lake"]), k=5)
"""

from vlkit.serving.limits import check_count, check_text, open_upload
from vlkit.serving.models import Models, load_models, shipped_adapters
from vlkit.serving.pictures import AddedPictures, Found, PictureLibrary, rank_texts

__all__ = [
    "AddedPictures",
    "Found",
    "Models",
    "PictureLibrary",
    "check_count",
    "check_text",
    "load_models",
    "open_upload",
    "rank_texts",
    "shipped_adapters",
]
