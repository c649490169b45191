"""Indexes on disk over the parts of ``vlkit embed``: what they find, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.scripts import call, refuse
from helpers.shards import image_bytes
from vlkit.data.shards import Shard
from vlkit.errors import UserError
from vlkit.extract import Parts
from vlkit.extract.parts import Row
from vlkit.index import IndexWriter, Item, VectorIndex
from vlkit.index.disk import DiskIndex, auto_disk_factory, build, index_embeddings, matrix, open_index

DIM = 32


def clustered(count: int, seed: int = 0, dim: int = DIM, spread: float = 0.6) -> np.ndarray:
    """Unit vectors around 40 centres, as embeddings of images lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(40, dim))
    vectors = centres[random.integers(40, size=count)] + spread * random.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def make_parts(folder: Path, vectors: np.ndarray, each: int = 900, dim: int = DIM) -> Parts:
    """Parts of ``each`` vectors; every 100th image of a part could not be read."""
    parts = Parts.open(folder, "model", dim, {"model": None, "base": "tiny", "images": "/images"})
    for number, start in enumerate(range(0, len(vectors), each)):
        own = vectors[start : start + each]
        rows = []
        for place in range(len(own)):
            if place % 100 == 50:
                rows.append(Row(f"bad-{start + place}", error="truncated"))
            rows.append(Row(f"i{start + place}", 10, 20, 30, f"hash{start + place}"))
        parts.write(Shard(f"{number:03d}", Path("none")), rows, own)
    return parts


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Parts, np.ndarray, np.ndarray]:
    """Parts, their vectors as float32, and queries."""
    vectors = clustered(5000)
    parts = make_parts(tmp_path_factory.mktemp("emb"), vectors)
    return parts, vectors.astype(np.float32), clustered(64, seed=2).astype(np.float32)


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)]))


def test_flat_compares_all_in_blocks(world, tmp_path, monkeypatch):
    parts, vectors, queries = world
    monkeypatch.setattr(matrix, "BLOCK", 256)
    index = index_embeddings(parts, tmp_path / "idx")
    scores, rows = index.search_rows(queries, 10)
    expected = exact(vectors, queries, 10)
    assert recall(rows, expected) > 0.999  # ties in the last bit may swap the tenth
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), atol=1e-5)
    hits = index.search(queries[:1], 3)[0]
    row = int(rows[0, 0])
    assert hits[0].item == Item(f"i{row}", digest=f"hash{row}", metadata={"width": 10, "height": 20})
    least = hits[1].score
    assert len(index.search(queries[:1], 3, min_score=least)[0]) == 2
    assert index.factory == "Flat" and len(index) == 5000
    # No vector is copied.
    assert sum(file.stat().st_size for file in (tmp_path / "idx").iterdir()) < vectors.nbytes / 2


@pytest.mark.parametrize("factory", ["IVF32,RaBitQ", "IVF32,SQ8"])
def test_inverted_lists_on_disk_reach_the_recall(factory, world, tmp_path):
    parts, vectors, queries = world
    index = index_embeddings(parts, tmp_path / "idx", factory)
    scores, rows = index.search_rows(queries, 10)
    assert recall(rows, exact(vectors, queries, 10)) >= 0.93  # chosen for 0.95 on other queries
    # Candidates are compared exactly, whatever the code.
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), atol=1e-5)
    (tmp_path / "idx").rename(tmp_path / "moved")
    np.testing.assert_array_equal(DiskIndex.open(tmp_path / "moved").search_rows(queries, 10)[1], rows)
    (tmp_path / "moved").rename(tmp_path / "idx")
    pointer = json.loads((tmp_path / "idx" / "disk.json").read_text())
    assert 1 <= pointer["nprobe"] < 32
    assert {file.name for file in (tmp_path / "idx").iterdir()} == {
        ".lock",
        "disk.json",
        "items-000001.arrow",
        "ivf-000001.index",
        "ivf-000001.ivfdata",
    }


def test_coarse_codes_get_more_candidates(tmp_path):
    """One bit per dimension does not tell the vectors of narrow clusters apart: ten candidates per result miss many."""
    vectors = clustered(12_000, dim=64, spread=0.3)
    queries = clustered(64, seed=2, dim=64, spread=0.3).astype(np.float32)
    parts, expected = make_parts(tmp_path / "emb", vectors, 4000, 64), exact(vectors.astype(np.float32), queries, 10)
    index = index_embeddings(parts, tmp_path / "idx", "IVF16,RaBitQ")
    assert recall(index.search_rows(queries, 10)[1], expected) >= 0.95
    many = index.search_rows(queries[:3], 2000)[1]
    assert many.shape == (3, 2000) and all(len(set(rows[rows >= 0])) == np.sum(rows >= 0) for rows in many)
    pointer = json.loads((tmp_path / "idx" / "disk.json").read_text())
    assert pointer["refined"] > 10
    del pointer["refined"]  # as indexes were written before it was chosen
    (tmp_path / "idx" / "disk.json").write_text(json.dumps(pointer))
    assert recall(DiskIndex.open(tmp_path / "idx").search_rows(queries, 10)[1], expected) < 0.9


def test_more_results_than_vectors(tmp_path):
    parts = make_parts(tmp_path / "emb", clustered(3))
    index = index_embeddings(parts, tmp_path / "idx")
    scores, rows = index.search_rows(clustered(2, seed=5).astype(np.float32), 5)
    assert (rows[:, 3:] == -1).all() and np.isinf(scores[:, 3:]).all() and sorted(rows[0, :3]) == [0, 1, 2]
    assert [len(hits) for hits in index.search(np.zeros((2, DIM), np.float32), 5)] == [3, 3]
    with pytest.raises(ValueError, match=r"expected \[Q, 32\]"):
        index.search_rows(np.zeros((2, 8), np.float32), 5)


def test_a_killed_update_leaves_the_old_index(world, tmp_path, monkeypatch):
    parts, _, queries = world
    before = index_embeddings(parts, tmp_path / "idx", "IVF32,SQ8").search_rows(queries, 5)[1]

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "choose_breadth", killed)
        with pytest.raises(KeyboardInterrupt):
            index_embeddings(parts, tmp_path / "idx", "IVF16,SQ8")
    old = DiskIndex.open(tmp_path / "idx", "model")
    assert old.factory == "IVF32,SQ8"
    np.testing.assert_array_equal(old.search_rows(queries, 5)[1], before)
    index_embeddings(parts, tmp_path / "idx", "Flat")
    names = sorted(file.name for file in (tmp_path / "idx").iterdir())
    assert names == [".lock", "disk.json", "items-000003.arrow"]


def test_what_cannot_be_searched_is_explained(world, tmp_path):
    parts, vectors, _ = world
    index_embeddings(parts, tmp_path / "idx")
    with pytest.raises(UserError, match="index made with model, not with other"):
        open_index(tmp_path / "idx", "other")
    with pytest.raises(UserError, match="enough for IVF128"):
        index_embeddings(parts, tmp_path / "few", "IVF512,SQ8")
    with pytest.raises(UserError, match="must be Flat or begin with IVF"):
        index_embeddings(parts, tmp_path / "few", "HNSW32")
    with pytest.raises(UserError, match="holds no vectors"):
        index_embeddings(Parts.open(tmp_path / "none", "model", DIM), tmp_path / "few")
    own = make_parts(tmp_path / "emb", vectors[:50])
    index_embeddings(own, tmp_path / "moved")
    make_parts(tmp_path / "emb", vectors[:40])
    with pytest.raises(UserError, match=r"have changed; run index.py --embeddings again"):
        open_index(tmp_path / "moved")
    (tmp_path / "emb").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no embeddings here"):
        open_index(tmp_path / "moved")
    with IndexWriter.open(tmp_path / "folder", DIM, "model"):
        pass
    with pytest.raises(UserError, match="holds an index of a folder of images"):
        index_embeddings(parts, tmp_path / "folder")
    assert isinstance(open_index(tmp_path / "folder"), VectorIndex)


def test_the_kind_follows_the_size():
    assert auto_disk_factory(3_000_000) == "Flat"
    assert auto_disk_factory(10_000_000) == "IVF16384,RaBitQ"
    assert auto_disk_factory(100_000_000) == "IVF32768,RaBitQ"


def test_an_exact_index_of_a_folder_is_searched_on_its_memory_map(tmp_path):
    vectors = clustered(300).astype(np.float32)
    with IndexWriter.open(tmp_path, DIM, "model") as writer:
        writer.add([Item(str(number)) for number in range(300)], vectors)
    index = VectorIndex.open(tmp_path)
    assert isinstance(index.vectors, np.memmap) and index._faiss is None
    scores, rows = index.search_rows(vectors[:9], 4)
    np.testing.assert_array_equal(rows[:, 0], np.arange(9))
    np.testing.assert_allclose(scores, -np.sort(-(vectors[:9] @ vectors.T), axis=1)[:, :4], atol=1e-5)


def test_from_images_to_hits_by_the_scripts(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.png").write_bytes(image_bytes(number))
    call("tasks/retrieval/embed.py", "--base", "tiny", "--input", tmp_path / "in", "--output", tmp_path / "emb")
    call("tasks/retrieval/index.py", "--embeddings", tmp_path / "emb", "--index", tmp_path / "idx")
    assert "6 vectors in 1 parts, Flat index on disk" in capsys.readouterr().out
    call(
        *("tasks/retrieval/search.py", "--index", tmp_path / "idx", "--image", tmp_path / "in" / "4.png"),
        *("--k", 2, "--json", tmp_path / "hits.json"),
    )
    results = json.loads((tmp_path / "hits.json").read_text())["results"]
    assert results[0]["image"] == str(tmp_path / "in" / "4.png") and results[0]["score"] == pytest.approx(1, abs=2e-3)
    same = ("--embeddings", tmp_path / "emb", "--index", tmp_path / "idx")
    assert "leave --embeddings out" in refuse("tasks/retrieval/index.py", *same, "--duplicates")
    assert "is an index on disk" in refuse("tasks/retrieval/index.py", "--index", tmp_path / "idx", "--duplicates")
    # Other images under the same numbers: the old names would stand beside the new vectors.
    (tmp_path / "in" / "4.png").rename(tmp_path / "in" / "9.png")
    call("tasks/retrieval/embed.py", "--base", "tiny", "--input", tmp_path / "in", "--output", tmp_path / "emb")
    query = ("--index", tmp_path / "idx", "--text", "a car")
    assert "have changed; run index.py --embeddings again" in refuse("tasks/retrieval/search.py", *query)
    call("tasks/retrieval/index.py", *same)
    call("tasks/retrieval/search.py", *query)
    said = refuse("tasks/retrieval/index.py", "--embeddings", tmp_path / "none", "--index", tmp_path / "idx")
    assert "no embeddings here" in said
