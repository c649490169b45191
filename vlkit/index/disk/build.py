"""Making an index on disk from the parts of ``vlkit embed``."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import filelock
import numpy as np

from vlkit.errors import UserError
from vlkit.extract import Parts
from vlkit.files import whole_file, write_json
from vlkit.index.approximate import new_index
from vlkit.index.disk.breadth import Breadth, choose_breadth
from vlkit.index.disk.matrix import PartsMatrix
from vlkit.index.disk.reader import FORMAT, FORMAT_VERSION, POINTER, DiskIndex
from vlkit.index.files import EXACT
from vlkit.index.files import POINTER as OTHER_POINTER

FLAT_UP_TO = 3_000_000
"""Vectors up to which all are compared."""
_PER_CLUSTER = 64  # training vectors; FAISS warns below 39
_OWN_FILES = re.compile(r"(items|ivf)-\d{6}\.(arrow|index|ivfdata)")

Progress = Callable[[int, int], None]


def auto_disk_factory(count: int) -> str:
    """The kind of index for ``count`` vectors.

    Compare all up to :data:`FLAT_UP_TO`; beyond, about 4 sqrt(count) clusters with RaBitQ codes (Gao and Long, SIGMOD
    2024): one bit per dimension and no codebook to train.
    """
    if count <= FLAT_UP_TO:
        return EXACT
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},RaBitQ"


def index_embeddings(
    parts: Parts, path: Path, factory: str = "auto", progress: Progress = lambda done, total: None
) -> DiskIndex:
    """Make an index of all whole parts in ``path``, or bring it up to date.

    The old index stays until the new one is complete; a killed process leaves no trace in searches. The vectors are not
    copied: the folder of embeddings must stay where it is.

    Args:
        parts: the embeddings.
        path: index folder, created if missing.
        factory: ``auto``, ``Flat``, or a FAISS string that begins with IVF, as ``IVF4096,RaBitQ`` or ``IVF4096,SQ8``.
        progress: called with the numbers of vectors done and in all.

    Raises:
        UserError: there are no embeddings, too few for the clusters, or another process writes the index.
    """
    names = parts.names()
    matrix = PartsMatrix(parts, names)
    count, dim = len(matrix), matrix.dim
    if not count:
        raise UserError(f"{parts.path}: holds no vectors; make them with tasks/retrieval/embed.py")
    factory = auto_disk_factory(count) if factory == "auto" else factory
    if factory != EXACT and not factory.startswith("IVF"):
        raise UserError(f"index factory {factory!r}: on disk it must be Flat or begin with IVF, such as IVF4096,RaBitQ")
    if (path / OTHER_POINTER).exists():
        raise UserError(f"{path}: holds an index of a folder of images; use another folder")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path / ".lock", timeout=0):
            name = _next_name(path)
            pointer = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "model": parts.about["model_id"],
                "dim": dim,
                "count": count,
                "factory": factory,
                "name": name,
                "nprobe": 0,
                "embeddings": str(parts.path.absolute()),
                "made_in": str(path.absolute()),
                "parts": names,
                "stamps": {part: parts.stamp(part) for part in names},
                "states": {part: parts.state(part) for part in names},
            }
            _write_items(parts, names, path / f"items-{name}.arrow")
            if factory != EXACT:
                breadth = _write_ivf(matrix, factory, path, name, progress)
                pointer |= {"nprobe": breadth.probes, "refined": breadth.refined}
            write_json(path / POINTER, pointer)
            for file in path.iterdir():
                if _OWN_FILES.fullmatch(file.name) and f"-{name}." not in file.name:
                    file.unlink(missing_ok=True)
    except filelock.Timeout:
        raise UserError(f"{path}: another process is writing this index; wait until it has finished") from None
    return DiskIndex.open(path)


def _next_name(path: Path) -> str:
    numbers = [int(found[0]) for file in path.iterdir() if (found := re.findall(r"-(\d{6})\.", file.name))]
    return f"{max(numbers, default=0) + 1:06d}"


def _write_items(parts: Parts, names: list[str], to: Path) -> None:
    """The ids of all rows, in a file that is read through a memory map: no Python object per item."""
    import pyarrow as pa

    columns = ("id", "width", "height", "sha256")
    with whole_file(to) as temporary, pa.OSFile(str(temporary), "wb") as file:
        writer = None
        for part in (parts.part(name) for name in names):
            rows = part.table.filter(part.table["row"].is_valid()).select(columns).replace_schema_metadata(None)
            writer = writer or pa.ipc.new_file(file, rows.schema)
            writer.write_table(rows.combine_chunks())
        assert writer is not None  # there are parts
        writer.close()


def _write_ivf(matrix: PartsMatrix, factory: str, path: Path, name: str, progress: Progress) -> Breadth:
    """Train, encode part by part, merge on disk; how much of it a search has to read."""
    from faiss.contrib.ondisk import merge_ondisk

    logging.getLogger("faiss.contrib.ondisk").setLevel(logging.WARNING)  # it names every part
    index = new_index(matrix.dim, factory)
    clusters = faiss.extract_index_ivf(index).nlist
    rows = np.unique(np.linspace(0, len(matrix) - 1, min(len(matrix), clusters * _PER_CLUSTER)).astype(np.int64))
    if len(rows) < clusters * 39:
        most = max(1, len(rows) // 39)
        raise UserError(f"index factory {factory!r}: {len(matrix)} vectors are enough for IVF{most}; use that, or Flat")
    index.train(matrix.take(rows))
    building = path / "building"
    shutil.rmtree(building, ignore_errors=True)  # of a killed process
    building.mkdir()
    try:
        trained = building / "trained"
        faiss.write_index(index, str(trained))
        shards = []
        for number in range(len(matrix.starts) - 1):
            shard = faiss.read_index(str(trained))
            first, last = int(matrix.starts[number]), int(matrix.starts[number + 1])
            if first == last:
                continue
            shard.add_with_ids(matrix.part(number), np.arange(first, last, dtype=np.int64))
            shards.append(str(building / f"{number:06d}"))
            faiss.write_index(shard, shards[-1])
            progress(last, len(matrix))
        lists = path.absolute() / f"ivf-{name}.ivfdata"
        merge_ondisk(index, shards, str(lists))
        faiss.write_index(index, str(path / f"ivf-{name}.index"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: FAISS could not write the index ({reason}); is the disk full?") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return choose_breadth(index, matrix)
