"""An index copied into LanceDB and Qdrant finds the same, stays one copy, and does not mix models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.scripts import call, refuse
from vlkit.data.shards import Shard
from vlkit.extract import Parts
from vlkit.extract.parts import Row
from vlkit.index import IndexWriter, Item, stores
from vlkit.index.disk import index_embeddings, open_index
from vlkit.index.stores import agreement, export_index, open_store

SCRIPT = "tasks/index_export.py"
KINDS = [pytest.param(kind, marks=pytest.mark.filterwarnings("ignore")) for kind in ("lancedb", "qdrant")]


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 12)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def on_disk(folder: Path, counts: dict[str, int], model: str = "model A") -> Path:
    parts = Parts.open(folder / "emb", model, 12)
    for number, (name, count) in enumerate(counts.items()):
        rows = [Row(f"{name}/{place}.jpg", 4, 3, 9, f"{place:064d}") for place in range(count)]
        parts.write(Shard(name, Path("none")), rows, unit(count, number))
    index_embeddings(parts, folder / "idx")
    return folder / "idx"


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_finds_the_same_and_follows_the_index(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stores, "BATCH", 64)
    pytest.importorskip({"lancedb": "lancedb", "qdrant": "qdrant_client"}[kind])
    index = on_disk(tmp_path, {"a": 150, "b": 70})
    store = ("--to", kind, "--store", tmp_path / "db")
    call(SCRIPT, "--index", index, *store)
    call(SCRIPT, "--index", index, *store)  # again: no second copy
    assert capsys.readouterr().out.count("220 vectors in idx; 100% of the 10") == 2
    for name in ("npy", "parquet"):
        (tmp_path / "emb" / f"part-a.{name}").unlink()
    on_disk(tmp_path, {"c": 30})
    call(SCRIPT, "--index", index, *store)
    copy = open_store(kind, str(tmp_path / "db"), "idx", 12)
    now = open_index(index)
    assert len(copy) == len(now) == 100 and agreement(now, copy) == 1
    query = unit(1, 9)
    assert copy.nearest(query[0], 20) == [hit.item.id for hit in now.search(query, 20)[0]]
    del copy


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_another_model_are_refused(kind, tmp_path):
    pytest.importorskip({"lancedb": "lancedb", "qdrant": "qdrant_client"}[kind])
    with IndexWriter.open(tmp_path / "own", 12, "model B", "Flat") as writer:
        writer.add([Item(f"{n}.jpg", metadata={"caption": "x"}) for n in range(5)], unit(5))
    store = open_store(kind, str(tmp_path / "db"), "idx", 12)
    assert export_index(open_index(tmp_path / "own"), store) == 5
    del store
    said = refuse(SCRIPT, "--index", on_disk(tmp_path, {"a": 9}), "--to", kind, "--store", tmp_path / "db")
    assert "holds vectors of model B, the index those of model A" in said and "--collection" in said


def test_a_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    said = refuse(SCRIPT, "--index", on_disk(tmp_path, {"a": 3}), "--to", "lancedb", "--store", tmp_path / "db")
    assert "vlkit[stores]" in said
