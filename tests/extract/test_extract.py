"""Parts of embeddings: the same from every runner, whole after a kill, and with the reason for each missing vector."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from helpers.scripts import call
from helpers.shards import FlatModel, image_bytes, make_tars
from vlkit.data.images import decode_image
from vlkit.data.shards import find_shards
from vlkit.errors import UserError
from vlkit.extract import Options, Parts, Share, Summary, embed_shards
from vlkit.extract.pipeline import ahead

OPTIONS = Options(batch_size=5)


def embed(source: Path, to: Path, share: Share | None = None, **options) -> Summary:
    shards = find_shards([str(source)])
    parts = Parts.open(to, FlatModel.identity, FlatModel.dim)
    return embed_shards(share.take(shards) if share else shards, FlatModel(), parts, OPTIONS, **options)


def bits(folder: Path) -> dict[str, bytes]:
    """The content of every file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_large_jpegs_are_decoded_at_a_part_of_their_size_and_recorded_whole(tmp_path: Path) -> None:
    image = Image.radial_gradient("L").resize((640, 320)).convert("RGB")
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "large.jpg", exif=turned(image))
    image.save(tmp_path / "in" / "large.png")
    seen: list[tuple[int, int]] = []

    class Small(FlatModel):
        min_side = 64

        def transform(self, image: Image.Image) -> Tensor:
            seen.append(image.size)
            return super().transform(image)

    rows, vectors = {}, []
    for name, model in (("draft", Small()), ("full", FlatModel())):
        parts = Parts.open(tmp_path / name, model.identity, model.dim)
        embed_shards(find_shards([str(tmp_path / "in")]), model, parts)
        (part,) = parts.names()
        rows[name] = pq.read_table(tmp_path / name / f"part-{part}.parquet").to_pylist()
        vectors.append(np.load(tmp_path / name / f"part-{part}.npy").astype(np.float32))
    assert sorted(seen) == [(80, 160), (640, 320)]  # turned upright, an eighth is too small
    assert [(row["width"], row["height"]) for row in rows["draft"]] == [(320, 640), (640, 320)]
    assert rows["draft"] == rows["full"]
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.999


def turned(image: Image.Image) -> Image.Exif:
    """A tag that says: a quarter turn to the right."""
    exif = image.getexif()
    exif[0x0112] = 6
    return exif


def test_vectors_and_rows_of_200_images(tmp_path):
    make_tars(tmp_path / "in")
    done = embed(tmp_path / "in", tmp_path / "out")
    assert (done.written, done.images, done.unreadable) == (8, 200, 0)
    parts, model, number = Parts.read(tmp_path / "out"), FlatModel(), 0
    assert parts.names() == [f"{shard:03d}.tar" for shard in range(8)]
    for part in parts:
        assert part.vectors.dtype == np.float16 and part.vectors.shape == (25, 8)
        for vector, row in zip(part.vectors, part.table.to_pylist(), strict=True):
            content = image_bytes(number)
            expected = model.embed(model.transform(decode_image(content, "x"))[None])[0].numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-3)
            assert row == {
                "id": f"{part.name}/n{number:06d}.png",
                "row": number % 25,
                "width": 24,
                "height": 20 + number % 5,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "error": None,
            }
            number += 1


def test_bad_images_and_a_damaged_tar_are_errors_and_nothing_else(tmp_path):
    paths = make_tars(tmp_path / "in", n000003=b"", n000030=image_bytes(30)[:50], n000031=b"no image")
    paths[5].write_bytes(paths[5].read_bytes()[:20000])
    done = embed(tmp_path / "in", tmp_path / "out")
    before_cut = len(Parts.read(tmp_path / "out").part("005.tar").vectors)
    assert done.written == 8 and done.images == 200 - 3 - 25 + before_cut and 0 < before_cut < 25
    assert done.unreadable == 4
    found = {row["id"]: row for part in Parts.read(tmp_path / "out") for row in part.table.to_pylist()}
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert errors["000.tar/n000003.png"] == "empty file" and errors["001.tar/n000031.png"] == "not an image"
    assert "truncated" in errors["001.tar/n000030.png"] and "after" in errors["005.tar"] and len(errors) == 4
    rows = [found[f"001.tar/n{number:06d}.png"]["row"] for number in range(25, 50)]
    assert rows == [*range(5), None, None, *range(5, 23)]


def test_images_without_a_finite_vector_are_errors(tmp_path):
    make_tars(tmp_path / "in", shards=1, each=7)
    model = FlatModel()
    plain = model.embed

    def broken(pixels):
        vectors = plain(pixels)
        vectors[-1] = float("nan")
        return vectors

    model.embed = broken
    parts = Parts.open(tmp_path / "out", model.identity, model.dim)
    done = embed_shards(find_shards([str(tmp_path / "in")]), model, parts, OPTIONS)
    assert (done.images, done.unreadable) == (5, 2)  # batches of 5 and 2
    assert parts.part("000.tar").ids() == [f"000.tar/n00000{number}.png" for number in (0, 1, 2, 3, 5)]


def test_processes_that_share_the_work_write_the_same_bits(tmp_path):
    make_tars(tmp_path / "in", n000042=b"broken")
    embed(tmp_path / "in", tmp_path / "one")
    for rank in (2, 0, 1):
        embed(tmp_path / "in", tmp_path / "three", Share(rank, 3))
    assert bits(tmp_path / "one") == bits(tmp_path / "three")


def test_a_killed_process_loses_no_whole_part_and_the_next_ends_with_the_same_bits(tmp_path):
    make_tars(tmp_path / "in")
    embed(tmp_path / "in", tmp_path / "whole")
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        str(root / "tests/helpers/shards.py"),
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "0.1",
    ]
    path = os.pathsep.join([str(root), str(root / "tests")])
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        while len(list((tmp_path / "out").glob("part-*.parquet"))) < 3:
            assert child.poll() is None
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    (tmp_path / "out" / ".part-005.tar.npy.dead.part").write_bytes(b"half")
    os.utime(tmp_path / "out" / ".part-005.tar.npy.dead.part", (0, 0))
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.parquet")}
    assert 3 <= len(whole) < 8
    done = embed(tmp_path / "in", tmp_path / "out")
    assert (done.skipped, done.written) == (len(whole), 8 - len(whole))
    assert all(path.stat().st_mtime_ns == time for path, time in whole.items())
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def test_damaged_and_outdated_parts_are_made_again(tmp_path):
    paths = make_tars(tmp_path / "in", shards=4, each=2)
    embed(tmp_path / "in", tmp_path / "out")
    before = bits(tmp_path / "out")
    (tmp_path / "out" / "part-000.tar.npy").unlink()
    (tmp_path / "out" / "part-001.tar.parquet").write_bytes(b"PAR1")
    make_tars(tmp_path / "new", shards=4, each=3)[2].rename(paths[2])
    done = embed(tmp_path / "in", tmp_path / "out")
    assert (done.skipped, done.written) == (1, 3)
    after = bits(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"part-002.tar.npy", "part-002.tar.parquet"}
    assert len(Parts.read(tmp_path / "out").part("002.tar").vectors) == 3


def test_a_folder_that_shrinks_or_moves_leaves_no_old_images(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_bytes(image_bytes(number))

    def found(folder: str) -> list[str]:
        words = ("--base", "tiny", "--input", tmp_path / folder, "--output", tmp_path / "out", "--shard_size", 2)
        call("tasks/retrieval/embed.py", *words)
        return [name for part in Parts.read(tmp_path / "out") for name in part.ids()]

    assert found("in") == ["0.png", "1.png", "2.png", "3.png"]
    (tmp_path / "in" / "0.png").unlink()
    (tmp_path / "in" / "3.png").unlink()
    (tmp_path / "in" / "1.png").rename(tmp_path / "in" / "new.png")
    assert found("in") == ["2.png", "new.png"]
    assert "1 of 1 parts are whole (1 new, 0 skipped)" in capsys.readouterr().out
    (tmp_path / "in").rename(tmp_path / "moved")
    assert found("moved") == ["2.png", "new.png"]
    assert Parts.read(tmp_path / "out").about["source"]["images"] == str(tmp_path / "moved")


def test_embeddings_of_another_model_are_refused(tmp_path):
    Parts.open(tmp_path / "out", "model a", 8)
    with pytest.raises(UserError, match="holds embeddings of model a, not of model b"):
        Parts.open(tmp_path / "out", "model b", 8)
    name = "{} on tiny (0123456789abcdef)"
    Parts.open(tmp_path / "named", name.format("mine"), 8)
    Parts.open(tmp_path / "named", name.format("renamed"), 8)  # the same weights
    with pytest.raises(UserError, match="no embeddings here"):
        Parts.read(tmp_path)


def test_batches_end_with_their_shard(tmp_path):
    make_tars(tmp_path / "in", shards=2, each=7)
    model = FlatModel()
    embed_shards(find_shards([str(tmp_path / "in")]), model, Parts.open(tmp_path / "o", "m", 8), OPTIONS)
    assert model.batches == [5, 2, 5, 2]


def test_reading_ahead_is_bounded_and_ends_with_its_consumer():
    made: list[int] = []

    def items():
        for number in range(1000):
            made.append(number)
            yield number

    taken = ahead(items(), 3)
    assert next(taken) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, and the one that finds no place
    taken.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread goes on without a consumer"
        time.sleep(0.02)
    assert len(made) < 10


def test_errors_of_a_reader_reach_the_consumer():
    def items():
        yield 1
        raise UserError("no column")

    taken = ahead(items(), 2)
    assert next(taken) == 1
    with pytest.raises(UserError, match="no column"):
        next(taken)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Share(3, 8, 1)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}, Share(2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "20",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_STEP": "10",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "1",
            },
            Share(3, 6, 1),
        ),
        ({"SLURM_NTASKS": "4"}, None),  # an sbatch script outside srun is one process
    ],
)
def test_launchers_give_shares(environment, share):
    assert Share.of(environment) == share


def test_a_share_sees_its_own_gpu_and_no_other_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,6"}.items():
        monkeypatch.setenv(name, value)
    Share(1, 2, 1).stand_alone()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6" and "WORLD_SIZE" not in os.environ
