"""MSVD: ``raw-captions.pkl`` with ``train_list.txt``, ``val_list.txt`` and ``test_list.txt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlkit.data.restricted_pickle import read_pickle
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.prepare import Counts, Source, add_record, compare_counts
from vlkit.errors import UserError

OFFICIAL: Counts = {"train": (1_200, 48_774), "val": (100, 4_290), "test": (670, 27_763)}
CAPTIONS = "raw-captions.pkl"
VIDEO_FOLDERS = ("YouTubeClips", "MSVD_Videos", "videos")
"""Folders that the clips of known collections lie in, besides the given one itself."""


def read(annotations: str | Path, lists: str | Path | None = None) -> Source:
    """Read MSVD for video retrieval; all captions of a clip are kept.

    Args:
        annotations: ``raw-captions.pkl``, or the folder that holds it. Only plain values are read from the pickle;
            nothing in it is executed.
        lists: folder with the lists, an id a line; a list that is not there makes no split. None = beside
            ``annotations``.

    Raises:
        UserError: a file is missing, damaged or holds code, or a listed clip has no captions; the message names file
            and line or clip.
    """
    path = Path(annotations)
    path = path / CAPTIONS if path.is_dir() else path
    folder = path.parent if lists is None else Path(lists)
    captions = read_pickle(path)
    if not isinstance(captions, dict) or not captions:
        raise UserError(f"{path}: not a dictionary of captions by video; is this the official file?")
    inputs = {"annotations": str(path.resolve()), "lists": str(folder.resolve())}
    source = Source("msvd", "video_retrieval", {}, inputs, elsewhere=other_clips(VIDEO_FOLDERS))
    seen: dict[str, str] = {}
    for split in OFFICIAL:
        for number, video_id in _read_list(folder / f"{split}_list.txt"):
            where = f"{split}_list.txt:{number}"
            if video_id in seen:
                raise UserError(f'{folder / where}: "{video_id}" stands in {seen[video_id]} too; remove one')
            seen[video_id] = where
            if video_id not in captions:
                raise UserError(f'{folder / where}: no captions of "{video_id}" in {path}; use lists of that file')
            texts = _texts(captions[video_id], f"{path}: {video_id}")
            add_record(source, split, {"id": f"msvd/{video_id}", "video": f"{video_id}.avi"}, texts)
    if not seen:
        raise UserError(
            f"{folder}: no train_list.txt, val_list.txt or test_list.txt in it; give their folder by --lists"
        )
    source.notes += compare_counts(source, OFFICIAL)
    return source


def _read_list(path: Path) -> list[tuple[int, str]]:
    """(line, id) for each line that is not blank; nothing if there is no such file."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); give the folder with the lists by --lists") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _texts(captions: Any, where: str) -> list[str]:
    """Captions of one clip: each a list of tokens, joined by blanks."""
    if not isinstance(captions, list):
        raise UserError(f"{where}: not a list of captions; is this the official file?")
    texts = []
    for index, tokens in enumerate(captions):
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"{where}[{index}]: not a list of words; is this the official file?")
        texts.append(" ".join(tokens))
    return texts
