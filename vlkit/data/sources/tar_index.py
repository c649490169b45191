"""What an uncompressed WebDataset tar holds: for each image its captions and its place, read once per tar.

The headers of a tar are read, its images are passed over. The result is kept in the cache folder until the tar changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlkit.cli.show import visible
from vlkit.data.images import IMAGE_SUFFIXES
from vlkit.data.records import path_problem
from vlkit.files import cache_folder, write_text

CAPTION_FIELDS = ("texts", "text", "captions", "caption", "sentences", "sentence", "alt_text", "description")
"""Fields of a member .json that hold captions, if none are named; the first one that is there counts."""
_LARGEST_TEXT = 2**20
_LAYOUT = 1  # of the cached file


@dataclass(frozen=True)
class Fields:
    """Which fields of the .json of an image hold what.

    Attributes:
        texts: captions; empty = the .txt beside the image, or the first of :data:`CAPTION_FIELDS` that is there.
        split: the name of the image's split; None = the tar's.
    """

    texts: tuple[str, ...] = ()
    split: str | None = None


@dataclass
class Pair:
    """An image of a tar: the member's name, its place in the file, its captions, and the name of its split if known."""

    image: str
    offset: int
    bytes: int
    texts: list[str] = field(default_factory=list)
    split: str | None = None


@dataclass
class TarIndex:
    """The images of a tar, in its order.

    Attributes:
        pairs: the images.
        wrong: members that cannot be used, and damage: one line each, without the tar's name.
        unused: captions without an image.
    """

    pairs: list[Pair] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unused: int = 0


def tar_index(path: Path, fields: Fields) -> TarIndex:
    """The index of a tar, from the cache folder if the tar has not changed since.

    Raises:
        OSError: the tar cannot be opened, or the cache cannot be written.
    """
    state = path.stat()
    identity = [_LAYOUT, os.path.abspath(path), state.st_size, state.st_mtime_ns, asdict(fields)]
    digest = hashlib.sha256(json.dumps(identity).encode("utf-8", "backslashreplace")).hexdigest()[:24]
    kept = cache_folder() / "tars" / digest[:2] / f"{digest}.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        return TarIndex([Pair(*pair) for pair in known["pairs"]], known["wrong"], known["unused"])
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or not ours: read the tar
        pass
    found = read_tar(path, fields)
    values = {"pairs": [list(vars(pair).values()) for pair in found.pairs], "wrong": found.wrong}
    write_text(kept, json.dumps({**values, "unused": found.unused}, ensure_ascii=False))
    return found


def read_tar(path: Path, fields: Fields) -> TarIndex:
    """Read the headers and captions of a tar. Damage ends it with a line in ``wrong`` that says where.

    Raises:
        OSError: the tar cannot be opened.
    """
    index, texts, pairs = TarIndex(), dict[str, dict[str, bytes]](), dict[str, Pair]()
    last, member = "its beginning", None
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    name, last = member.name, f"member {visible(member.name)}"
                    key, suffix = os.path.splitext(name)
                    suffix = suffix.lower()
                    if member.offset_data + member.size > size:
                        index.wrong.append(f"{last}: the file ends inside it; replace the tar by a complete one")
                        break
                    if not member.isfile() or member.issparse():
                        continue
                    if suffix in IMAGE_SUFFIXES:
                        _add(index, pairs, key, Pair(name, member.offset_data, member.size))
                    elif suffix in (".txt", ".json") and member.size > _LARGEST_TEXT:
                        index.wrong.append(f"{last}: {member.size} bytes are no caption; make it smaller or remove it")
                    elif suffix in (".txt", ".json"):
                        content: Any = archive.extractfile(member)
                        texts.setdefault(key, {})[suffix] = content.read()
                else:
                    # tarfile takes a damaged header for the end; the true end is a block of zeros.
                    file.seek(archive.offset)
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        index.wrong.append(f"damaged or incomplete after {last}: the end mark is missing; replace it")
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            index.wrong.append(f"damaged or incomplete after {last} ({error}); replace the tar")
    for key, pair in pairs.items():
        try:
            _caption(pair, texts.pop(key, {}), fields)
            index.pairs.append(pair)
        except ValueError as error:
            index.wrong.append(f"member {visible(key)}{error}")
    index.unused = len(texts)
    return index


def _add(index: TarIndex, pairs: dict[str, Pair], key: str, pair: Pair) -> None:
    name = visible(pair.image)
    problem = path_problem(pair.image)
    if not pair.image.isprintable():  # bytes that are not UTF-8 are not, either
        problem = "has a name with bytes that are no text; rename it"
    elif key in pairs:
        problem = f"is the second image of {visible(key)}; give each image a name of its own"
    if problem:
        index.wrong.append(f"member {name}: {problem}")
    else:
        pairs[key] = pair


def _caption(pair: Pair, texts: dict[str, bytes], fields: Fields) -> None:
    """Fill captions and split. ``ValueError``: the ending of the wrong file, and what is wrong with it."""
    row: dict[str, Any] = {}
    if ".json" in texts and (fields.texts or fields.split or ".txt" not in texts):
        row = _parsed(texts[".json"])
    if fields.texts:
        absent = [name for name in fields.texts if name not in row]
        if absent and len(absent) == len(fields.texts):
            raise ValueError(f".json: has no field {absent[0]!r}, but {', '.join(sorted(row)) or 'none'}; name another")
        pair.texts = _texts(row, fields.texts)
    elif ".txt" in texts:
        try:
            lines = texts[".txt"].decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise ValueError(".txt: not UTF-8 text; save it as UTF-8") from None
        pair.texts = [line.strip() for line in lines if line.strip()]
    else:
        pair.texts = _texts(row, [name for name in CAPTION_FIELDS if name in row][:1])
    split = row.get(fields.split) if fields.split else None
    pair.split = None if split is None else str(split)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f".json: not valid JSON ({error}); correct it") from None
    if not isinstance(row, dict):
        raise ValueError(".json: not a JSON object; write {...}")
    return row


def _texts(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    cells = [row.get(name) for name in names]
    each = [item for cell in cells for item in (cell if isinstance(cell, list) else [cell])]
    return [item for item in each if isinstance(item, str)]
