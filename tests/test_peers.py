"""The benchmark of peers: its inputs are right; its jobs are measured by the script itself."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from helpers.scripts import ROOT, load_script


def test_true_neighbours_are_those_of_one_exhaustive_comparison(tmp_path: Path) -> None:
    peers = load_script("benchmarks/peers.py")
    config = peers.Config("search", json=tmp_path / "out.json", count=45_000, dim=8)
    folder = peers.vectors(config, tmp_path)
    files = sorted((folder / "vectors").glob("*.npy"))
    stored, queries, truth = np.concatenate([np.load(f) for f in files]), *map(np.load, two(folder))
    assert len(files) == 3 and stored.shape == (45_000, 8) and stored.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=1e-5)
    scores = queries @ stored.T
    best = np.sort(scores, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(np.take_along_axis(scores, truth, axis=1), best, rtol=1e-5)


def two(folder: Path) -> tuple[Path, Path]:
    return folder / "queries.npy", folder / "truth.npy"


def test_every_peer_has_its_script_and_vlkits_rows_its_methods(tmp_path: Path) -> None:
    peers = load_script("benchmarks/peers.py")
    for peer in (*peers.TRAIN.values(), *peers.SEARCH.values()):
        ast.parse((ROOT / "benchmarks/peer_jobs" / peer.script).read_text(encoding="utf-8"))
    source = (ROOT / "benchmarks/peer_jobs/train_vlkit.py").read_text(encoding="utf-8")
    assert all(f'"{method}"' in source for method in peers.TRAIN["vlkit"].methods)
    with pytest.raises(peers.UserError, match="--peers faiss: not in the job search; choose from vlkit, autofaiss"):
        peers.main(peers.Config("search", json=tmp_path / "out.json", peers=["faiss"]))


def test_a_table_gives_bytes_in_mib() -> None:
    peers = load_script("benchmarks/peers.py")
    rows = [{"peer": "a", "method": "x", **peers.median([{"peak_bytes": 2**20}, {"peak_bytes": 3 * 2**20}])}]
    assert peers.markdown(rows).splitlines()[-1] == "| a | x | 2.0 |"
