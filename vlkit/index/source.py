"""What an index was made of: the model and the folder of media, in ``source.json`` beside the index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.data.scan import Scan, find_media
from vlkit.errors import NothingThereError, UserError
from vlkit.files import read_json, write_json
from vlkit.index.files import POINTER

SOURCE = "source.json"
SCRIPTS = {"images": "tasks/retrieval", "videos": "tasks/video_retrieval"}


@dataclass(frozen=True)
class IndexSource:
    """What an index was made of.

    Attributes:
        media: what the folder holds.
        folder: the indexed folder, absolute.
        model: the adapter folder, absolute; None if a base alone made the vectors.
        base: name of that base.
        min_score: threshold for searches by text, calibrated for this index; None = that of the adapter, if it has one.
    """

    media: Literal["images", "videos"]
    folder: Path
    model: Path | None
    base: str | None
    min_score: float | None = None

    def write(self, index: Path) -> None:
        """Write ``source.json`` into the folder of an index."""
        model = None if self.model is None else str(self.model.absolute())
        more = {} if self.min_score is None else {"min_score": self.min_score}
        write_json(index / SOURCE, {"model": model, "base": self.base, self.media: str(self.folder.absolute()), **more})

    @classmethod
    def read(cls, index: Path, media: Literal["images", "videos"]) -> IndexSource:
        """Read it back.

        Raises:
            UserError: there is no index, one of other media, or ``source.json`` is damaged.
        """
        file = index / SOURCE
        if not file.exists():
            raise UserError(f"{index}: no index there; make one with {SCRIPTS[media]}/index.py")
        source = read_json(file)
        other = next(name for name in SCRIPTS if name != media)
        if isinstance(source, dict) and other in source:
            raise UserError(f"{index}: an index of {other}; search it with {SCRIPTS[other]}/search.py")
        given = [source.get(key) for key in (media, "model", "base")] if isinstance(source, dict) else []
        folder, model, base = given or (None, None, None)
        if not isinstance(folder, str) or not all(isinstance(text, str | None) for text in given):
            raise UserError(f"{file}: does not say what was indexed; the index is damaged, make it again")
        if (model is None) == (base is None):
            raise UserError(f"{file}: names no model; the index is damaged, make it again")
        least = source.get("min_score")
        if least is not None and not isinstance(least, int | float):
            raise UserError(f"{file}: field 'min_score' is not a number; correct it")
        return cls(media, Path(folder), None if model is None else Path(model), base, least)


def wanted(media: Literal["images", "videos"], folder: Path, index: Path) -> Scan:
    """The files of ``folder`` that belong in ``index``; none if all were deleted since the index was made.

    Raises:
        UserError: no such folder; or it is empty and there is no index to empty.
    """
    try:
        return find_media(folder, media, f"--{media}")
    except NothingThereError:
        if (index / POINTER).exists():
            return Scan(folder, media)
        raise
