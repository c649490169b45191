"""WebDataset tars with images and captions as a dataset for retrieval; the images stay in the tars."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlkit.cli.show import visible
from vlkit.data.shards import TAR_SUFFIXES, find_shards
from vlkit.data.sources.folder import split_of
from vlkit.data.sources.named_splits import CALLED, plain_split, split_to_divide
from vlkit.data.sources.prepare import Source, add_record
from vlkit.data.sources.tar_index import Fields, TarIndex, tar_index
from vlkit.data.tar_region import FIELD
from vlkit.errors import UserError, some

_READ_AT_ONCE = 8  # tars whose headers are read: more hide the latency of a network file system


def are_tars(root: str | Path) -> bool:
    """Whether ``root`` names tars and not a prepared dataset: a tar, names with ``{0..9}`` or ``*``, or a folder."""
    path = Path(root)
    if path.name.lower().endswith(TAR_SUFFIXES):
        return True
    return path.is_dir() and not (path / "dataset.json").exists() and next(path.glob("*.tar"), None) is not None


def find_tars(root: str | Path) -> list[Path]:
    """The tars that ``root`` names (:func:`vlkit.data.shards.find_shards`).

    Raises:
        UserError: nothing is there, or a file cannot be read at any place because it is compressed.
    """
    paths = [shard.path for shard in find_shards([str(root)])]
    packed = [path for path in paths if path.suffix.lower() != ".tar"]
    if packed:
        raise UserError(f"{some(packed)}: training reads uncompressed tars, in any order; unpack each to a .tar first")
    return paths


def fields_of(columns: str) -> Fields:
    """The fields of the .json members that ``texts=FIELD,split=FIELD`` names; texts may be repeated.

    Raises:
        UserError: another form or key.
    """
    texts, split = list[str](), list[str]()
    for part in filter(None, (part.strip() for part in columns.split(","))):
        key, _, name = (word.strip() for word in part.partition("="))
        if key not in ("texts", "split") or not name or (key == "split" and split):
            raise UserError(f"columns {part!r}: for tars write texts=FIELD or split=FIELD, of the .json of an image")
        (texts if key == "texts" else split).append(name)
    return Fields(tuple(texts), split[0] if split else None)


def read(
    root: str | Path,
    columns: str = "",
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Source, Path]:
    """Read the headers and captions of tars; the images are not read.

    An image and its captions have the same name: ``0001.jpg`` with ``0001.txt`` (a caption per line) or ``0001.json``.
    A split is named by the .json (``split=FIELD``), or by the tar's name or folder below the common one
    (``val-000.tar``, ``test/000.tar``).

    Args:
        root: a tar, names with ``{000..099}`` or ``*``, or a folder of tars.
        columns: see :func:`fields_of`.
        val, test: shares for these splits: both if there is a single split, and ``val`` of the training images if
            there is none for validation. Decided by a hash of the image's id and ``seed``.
        progress: called with the numbers of tars read and in all.

    Returns:
        The source, and the folder that its media paths are relative to.

    Raises:
        UserError: nothing is there, or no image has a caption.
    """
    paths, fields = find_tars(root), fields_of(columns)
    top = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [Path(os.path.relpath(path.absolute(), top)).as_posix() for path in paths]
    title = re.sub(r"[^\w.-]+", "-", top.name).strip("-.") or "shards"
    source = Source(title, "retrieval", {}, {"tars": str(root), "columns": columns}, located=True)
    source.extra["tars"] = {name: path.stat().st_size for name, path in zip(names, paths, strict=True)}
    unused = 0
    for done, (name, path, found) in enumerate(_indices(names, paths, fields), start=1):
        _add(source, name, found)
        source.wrong += [f"{visible(path)}: {line}" for line in found.wrong]
        unused += found.unused
        progress(done, len(paths))
    if not any(source.splits.values()):
        why = f"; {some(source.wrong, 1)}" if source.wrong else ""
        raise UserError(f"{root}: no image with a caption; put NAME.jpg beside NAME.txt or NAME.json in the tars{why}")
    if unused:
        source.notes.append(f"{unused} texts have no image of the same name and were left out")
    _divide(source, val, test, seed)
    return source, top


def _indices(names: list[str], paths: list[Path], fields: Fields) -> Iterator[tuple[str, Path, TarIndex]]:
    def one(path: Path) -> TarIndex:
        return tar_index(path, fields)

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        try:
            yield from zip(names, paths, pool.map(one, paths), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C


def _add(source: Source, name: str, found: TarIndex) -> None:
    own = next((CALLED[word] for word in re.split(r"[^a-z]+", name.lower()) if word in CALLED), "train")
    for pair in found.pairs:
        record = {
            "id": f"{source.name}/{name.removesuffix('.tar')}/{os.path.splitext(pair.image)[0]}",
            "image": f"{name}/{pair.image}",
            FIELD: {"file": name, "offset": pair.offset, "bytes": pair.bytes},
        }
        add_record(source, own if pair.split is None else plain_split(pair.split), record, pair.texts)


def _divide(source: Source, val: float, test: float, seed: int) -> None:
    """Make the splits that the tars do not name."""
    found = split_to_divide(source.splits.keys(), val, test)
    if found is None:
        return
    only, val, test = found
    records = source.splits.pop(only)
    for record in records:
        split = split_of(record["id"], val=val, test=test, seed=seed)
        source.splits.setdefault(only if split == "train" else split, []).append(record)
    shares = f"val {val:g}" + (f", test {test:g}" if test else "")
    source.notes.append(f'split "{only}" was divided by a hash of the id: {shares}')
    order = ("train", "val", "test")
    source.splits = dict(sorted(source.splits.items(), key=lambda item: (*order, item[0]).index(item[0])))
