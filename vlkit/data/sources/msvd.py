"""MSVD: captions as released (``AllVideoDescriptions.txt``, ``video_corpus.csv``) or as ``raw-captions.pkl``, with
``train_list.txt``, ``val_list.txt`` and ``test_list.txt``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlkit.data.restricted_pickle import read_pickle
from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.prepare import Counts, Source, add_record, compare_counts
from vlkit.data.sources.table import table_rows
from vlkit.errors import UserError, some
from vlkit.files import read_text, text_lines

OFFICIAL: Counts = {"train": (1_200, 48_774), "val": (100, 4_290), "test": (670, 27_763)}
CAPTIONS = ("raw-captions.pkl", "AllVideoDescriptions.txt", "video_corpus.csv", "MSR Video Description Corpus.csv")
"""Names of the caption files; a folder is searched for them in this order."""
VIDEO_FOLDERS = ("YouTubeClips", "MSVD_Videos", "videos")
"""Sub-folders in which known copies of the dataset store the clips."""
LANGUAGE = "English"
"""The language of ``video_corpus.csv`` that is kept, as in every published protocol."""
_FIX = "give raw-captions.pkl, AllVideoDescriptions.txt or video_corpus.csv, or their folder"
_COLUMNS = ("VideoID", "Start", "End", "Language", "Description")

Captions = dict[str, list[str]]


def read(annotations: str | Path, lists: str | Path | None = None) -> Source:
    """Read MSVD for video retrieval; all captions of a clip are kept.

    Args:
        annotations: one of :data:`CAPTIONS`, or the folder that holds it. Only plain values are read from the pickle;
            nothing in it is executed. The English captions of ``video_corpus.csv`` are read.
        lists: folder with the lists, one id per line; a missing list gives no split. None = beside
            ``annotations``.

    Raises:
        UserError: a file is missing, is damaged or contains code, or a listed clip has no captions; the message names
            file and line or clip.
    """
    path = _captions_file(Path(annotations))
    folder = path.parent if lists is None else Path(lists)
    inputs = {"annotations": str(path.resolve()), "lists": str(folder.resolve())}
    source = Source("msvd", "video_retrieval", {}, inputs, elsewhere=other_clips(VIDEO_FOLDERS))
    captions, source.notes = _read_captions(path)
    seen: dict[str, str] = {}
    for split in OFFICIAL:
        for number, video_id in _read_list(folder / f"{split}_list.txt"):
            where = f"{split}_list.txt:{number}"
            if video_id in seen:
                raise UserError(f'{folder / where}: "{video_id}" is in {seen[video_id]} too; remove one')
            seen[video_id] = where
            if video_id not in captions:
                raise UserError(f'{folder / where}: no captions of "{video_id}" in {path}; use lists of that file')
            record = {"id": f"msvd/{video_id}", "video": f"{video_id}.avi"}
            add_record(source, split, record, captions[video_id])
    if not seen:
        raise UserError(
            f"{folder}: no train_list.txt, val_list.txt or test_list.txt in it; give their folder by --lists"
        )
    source.notes += compare_counts(source, OFFICIAL)
    return source


def _captions_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = next((path / name for name in CAPTIONS if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"{path}: holds none of {', '.join(CAPTIONS)}; {_FIX}")
    return found


def _read_captions(path: Path) -> tuple[Captions, list[str]]:
    """Captions of each clip, and notes for the user; the file ending gives the format."""
    readers = {".txt": _read_descriptions, ".csv": _read_corpus}
    captions, notes = readers.get(path.suffix.lower(), _read_pickled)(path)
    if not captions:
        raise UserError(f"{path}: holds no captions; {_FIX}")
    return captions, notes


def _read_descriptions(path: Path) -> tuple[Captions, list[str]]:
    """``<id> <caption>`` lines; comments (``#``) and blank lines come before them."""
    captions: Captions = {}
    for number, line in enumerate(text_lines(read_text(path, _FIX)), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        video_id, _, caption = line.strip().replace("\t", " ", 1).partition(" ")
        if video_id.count("_") < 2 or not caption.strip():
            raise UserError(f"{path}:{number}: expected <video>_<start>_<end> <caption>, got {line[:60]!r}; {_FIX}")
        captions.setdefault(video_id, []).append(caption)
    return captions, []


def _read_corpus(path: Path) -> tuple[Captions, list[str]]:
    """A row per caption, in many languages; the clip is ``<VideoID>_<Start>_<End>``."""
    captions: Captions = {}
    others: dict[str, int] = {}
    for where, row in table_rows(path, _FIX, filled=_COLUMNS[:4]):
        if _COLUMNS[4] not in row:
            raise UserError(f'{where}: the header has no column "{_COLUMNS[4]}"; {_FIX}')
        video, start, end, language = (row[name].strip() for name in _COLUMNS[:4])
        if language.lower() == LANGUAGE.lower():
            captions.setdefault(f"{video}_{start}_{end}", []).append(row[_COLUMNS[4]])
        else:
            others[language] = others.get(language, 0) + 1
    count = sum(others.values())
    notes = [f"{count:,} captions are not {LANGUAGE} and were left out: {some(sorted(others))}"] if count else []
    return captions, notes


def _read_pickled(path: Path) -> tuple[Captions, list[str]]:
    """``{id: [[word, word, ...], ...]}``."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a dictionary of captions by video; {_FIX}")
    return {video_id: _texts(captions, f"{path}: {video_id}") for video_id, captions in content.items()}, []


def _read_list(path: Path) -> list[tuple[int, str]]:
    """(line, id) for each line that is not blank; empty if there is no such file."""
    if not path.exists():
        return []
    lines = text_lines(read_text(path, "give the folder with the lists by --lists"))
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
