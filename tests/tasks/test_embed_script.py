"""``vlkit embed``: a folder and tars through the script, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.scripts import call, refuse
from helpers.shards import image_bytes, make_tars
from vlkit.extract import Parts
from vlkit.tasks.retrieval.pipeline import load_zero_shot

SCRIPT = "tasks/retrieval/embed.py"


def test_a_folder_and_its_vectors(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").write_bytes(image_bytes(number) if number != 3 else b"no image")
    words = ("--base", "tiny", "--input", tmp_path / "in", "--output", tmp_path / "out", "--shard_size", 2)
    call(SCRIPT, *words)
    assert "3 of 3 parts are whole (3 new, 0 skipped); 4 images embedded, 1 unreadable" in capsys.readouterr().out
    pipeline = load_zero_shot("tiny", "cpu")
    about = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert about["model_id"] == pipeline.identity
    assert about["source"] == {"model": None, "base": "tiny", "images": str(tmp_path / "in")}
    parts = list(Parts.read(tmp_path / "out"))
    ids = [name for part in parts for name in part.ids()]
    assert ids == ["0.png", "1.png", "2.png", "4.png"]
    expected = pipeline.embed_images([tmp_path / "in" / name for name in ids])
    np.testing.assert_allclose(np.concatenate([part.vectors for part in parts]), expected, atol=1e-3)
    call(SCRIPT, *words)
    assert "(0 new, 3 skipped)" in capsys.readouterr().out


def test_a_launched_process_takes_its_share(tmp_path, capsys, monkeypatch):
    make_tars(tmp_path / "in", shards=3, each=2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    pattern = tmp_path / "in" / "{000..002}.tar"
    call(SCRIPT, "--base", "tiny", "--input", pattern, "--output", tmp_path / "out", "--runner", "torchrun")
    said = capsys.readouterr().out
    assert "1 of 3 parts are whole (1 new" in said and "run the same command again" in said
    assert Parts.read(tmp_path / "out").names() == ["001.tar"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--base", "tiny"), "--input: is missing"),
        (("--input", "x"), "either --model DIR"),
        (("--input", "none", "--base", "tiny"), "none: no such file"),
        (("--input", "x", "--base", "tiny", "--threads", "0"), "--threads 0: must be at least 1"),
        (("--input", "x", "--base", "tiny", "--runner", "torchrun"), "put torchrun or srun before the command"),
    ],
)
def test_wrong_flags_are_named(words, says):
    assert says in refuse(SCRIPT, *words)
