"""The Ray runner, where Ray is installed: the same parts as one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.shards import FlatModel, make_tars
from vlkit.data.shards import find_shards
from vlkit.extract import Options, Parts, embed_shards

pytest.importorskip("ray.data")

OPTIONS = Options(batch_size=5)


@pytest.mark.slow
def test_actors_write_the_parts_of_one_process(tmp_path, monkeypatch):
    import ray

    from vlkit.extract.ray_runner import embed_with_ray

    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    make_tars(tmp_path / "in", n000042=b"broken")
    shards = find_shards([str(tmp_path / "in")])
    one = Parts.open(tmp_path / "one", FlatModel.identity, FlatModel.dim)
    two = Parts.open(tmp_path / "two", FlatModel.identity, FlatModel.dim)
    embed_shards(shards, FlatModel(), one, OPTIONS)
    embed_shards(shards[:2], FlatModel(), two, OPTIONS)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        done = embed_with_ray(shards, FlatModel, two, OPTIONS, actors=1)
    finally:
        ray.shutdown()
    assert (done.written, done.skipped, done.images, done.unreadable) == (6, 2, 150, 0)
    for file in sorted(one.path.iterdir()):
        assert file.read_bytes() == (two.path / file.name).read_bytes(), file.name
