"""The video retrieval scripts, from a prepared dataset to search results, on the embedded base."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vlkit
from helpers.scripts import ROOT, call, command, launch
from vlkit.adapters import ADAPTERS
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.drawn.videos import draw_videos
from vlkit.encoders.bases import Preprocess
from vlkit.errors import UserError
from vlkit.index.media import VideoWindows
from vlkit.tasks.video_retrieval.data import ClipReader, RecordFrames, VideoTextPairs, hold_out

TRAIN, EVALUATE = "tasks/video_retrieval/train.py", "tasks/video_retrieval/evaluate.py"
INDEX, SEARCH = "tasks/video_retrieval/index.py", "tasks/video_retrieval/search.py"
QUICK = ("--epochs", 1, "--batch_size", 4, "--frames", 2, "--device", "cpu")
PREPROCESS = Preprocess((64, 64), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Drawn clips: 10 to train on with four sentences each, 6 with one sentence each to test."""
    root = tmp_path_factory.mktemp("clips")
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for video in draw_videos(0, {"train": 10, "test": 6}, root, side=48):
        record = {"id": video.video_id, "video": video.file_name, "texts": list(video.sentences[:4])}
        splits[video.split].append(record if video.split == "train" else {**record, "texts": record["texts"][:1]})
    write_dataset(root, name="drawn", task="video_retrieval", splits=splits, media_root=root, source="made for a test")
    return root


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory) -> Path:
    """A finished SHERL run on it."""
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK)
    return folder


def test_run_folder_holds_what_every_run_has(trained: Path):
    names = ("config.yaml", "log.jsonl", "curves.png", "vlkit_adapter.json", "vlkit_adapter.safetensors", "README.md")
    assert all((trained / name).stat().st_size > 0 for name in names) and (trained / "checkpoint").is_dir()
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (metrics["task"], metrics["split"], metrics["frames"]) == ("video_retrieval", "test", 2)
    keys = {f"{direction}_r{k}" for direction in ("t2v", "v2t") for k in (1, 5, 10)} | {"rsum", "t2v_median_rank"}
    assert keys <= set(metrics["before"]) and keys <= set(metrics["after"])
    assert 0 < metrics["trainable_parameters"] < metrics["total_parameters"]
    config = json.loads((trained / "vlkit_adapter.json").read_text())
    assert config["task"] == "video_retrieval"
    assert (config["preprocess"]["frames"], config["preprocess"]["sampling"]) == (2, "uniform")
    assert config["head"]["temporal"] == "mean"
    names = set(load_file(trained / "vlkit_adapter.safetensors"))
    assert names and not any("logit" in name or ".base." in name for name in names)


def test_saved_adapter_measures_as_it_did_in_training(trained: Path, dataset: Path, tmp_path: Path):
    call(EVALUATE, "--model", trained, "--data.root", dataset, "--json", tmp_path / "m.json")
    again = json.loads((tmp_path / "m.json").read_text())
    after = json.loads((trained / "metrics.json").read_text())["after"]
    assert {key: again[key] for key in after} == pytest.approx(after) and again["protocol"] == "single sentence"


@pytest.mark.parametrize("method", ["dsl", "qbnorm"])
def test_reranking_is_reported_beside_the_plain_numbers(method: str, trained: Path, dataset: Path, tmp_path, capsys):
    words = ("--model", trained, "--data.root", dataset, "--rerank", method, "--json", tmp_path / "m.json")
    call(EVALUATE, *words, "--split", "train" if method == "dsl" else "test")
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert 0 <= metrics[f"{method}_rsum"] <= 600 and f"{method}_t2v_r1" in metrics and "rsum" in metrics
    assert ("whole test set" if method == "dsl" else "training queries") in capsys.readouterr().out
    assert ("v2t_sentence_r1" in metrics) == (method == "dsl")  # the training split has several sentences a video


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ADAPTERS))
def test_every_kind_trains_saves_and_loads(kind: str, dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", "--adapter.kind", kind, *QUICK)
    pipeline = vlkit.load(tmp_path / "run", device="cpu")
    texts = pipeline.embed_texts(["a red ball rolls", "a fish"])
    path = dataset / "videos" / "video0.mp4"
    videos = pipeline.embed_videos([path, (path, 0.5, 1.0)])
    images = pipeline.embed_images([Image.new("RGB", (50, 40), "red")])
    assert texts.shape == videos.shape == (2, pipeline.dim) and texts.dtype == videos.dtype == np.float32
    assert not np.allclose(videos[0], videos[1], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([texts, videos, images]), axis=1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--adapter.handoff", "tokens", "--head.temporal", "transformer", "--head.temporal_layers", 1),
        ("--head.temporal", "lstm", "--frame_chunk", 3, "--data.every_caption", "true", "--batch_size", 18),
        ("--head.pool", "gpo", "--loss.kind", "clip4clip", "--sampling", "segment", "--frame_chunk", 0),
        ("--accumulate", 2, "--data.keep", 0, "--head.scale", "trained", "--head.projection", "false"),
        (
            "--adapter.kind",
            "lst",
            "--adapter.start",
            "fisher",
            "--adapter.fisher_examples",
            3,
            "--head.temporal",
            "lstm",
        ),
    ],
)
def test_options_run(options: tuple, dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    call(EVALUATE, "--model", tmp_path / "run", "--data.root", dataset, "--json", tmp_path / "m.json")
    again = json.loads((tmp_path / "m.json").read_text())
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())["after"]
    assert again["rsum"] == pytest.approx(after["rsum"])


def test_frame_folders_chunks_and_kept_frames_change_no_gradient(dataset: Path, tmp_path: Path):
    """One step from three ways to the same frames ends with the same weights."""
    words = ("--data.root", dataset, *QUICK, "--adapter.handoff", "pooled", "--seed", 3)
    call(TRAIN, "--output", tmp_path / "a", *words, "--frame_chunk", 0, "--data.keep", 0)
    call(TRAIN, "--output", tmp_path / "b", *words, "--frame_chunk", 3)
    one, other = (load_file(tmp_path / name / "vlkit_adapter.safetensors") for name in "ab")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-3)


def test_held_out_videos_are_no_training_videos(dataset: Path, trained: Path):
    records = Dataset.open(dataset).records("train")
    twice = [*records, *({**r, "id": f"{r['id']}b"} for r in records)]  # two parts of each file
    training, validation = hold_out(twice, 0.3)
    assert len(training) == 14 and len(validation) == 6
    assert not {r["video"] for r in training} & {r["video"] for r in validation}
    assert hold_out(twice, 0.3) == (training, validation)
    with pytest.raises(UserError, match=r"--data\.hold_out"):
        hold_out(records[:1], 0.5)
    card = (trained / "README.md").read_text()
    assert "validation videos 1" in card and "train videos 9" in card


def test_examples(dataset: Path):
    data = Dataset.open(dataset)
    frames = RecordFrames(data, "train", ClipReader(PREPROCESS, 3), keep_bytes=2 * 3 * 3 * 64 * 64)
    expanded, plain = (VideoTextPairs(frames, frames.records, every_caption=every) for every in (True, False))
    assert len(expanded) == 40 and len(plain) == 10
    pixels, text, group = expanded[5]
    assert pixels.shape == (3, 3, 64, 64) and pixels.dtype == torch.uint8
    assert (text, group) == (frames.records[1]["texts"][1], 1)
    again = [expanded[k][0] for k in (5, 0, 8)]  # the first two videos fit into memory, the third does not
    assert torch.equal(again[0], pixels) and expanded[5][0] is pixels and expanded[8][0] is not again[2]
    segments = RecordFrames(data, "train", ClipReader(PREPROCESS, 3, "segment"), keep_bytes=2**30)
    drawn = VideoTextPairs(segments, segments.records, every_caption=False)
    torch.manual_seed(0)
    first, second = drawn[0][0], drawn[0][0]
    torch.manual_seed(0)
    assert torch.equal(drawn[0][0], first) and not torch.equal(first, second)


def test_index_is_incremental_and_search_finds(trained: Path, dataset: Path, tmp_path: Path, capsys):
    videos, index = tmp_path / "videos", tmp_path / "idx"
    (videos / "sub").mkdir(parents=True)
    for i in range(5):
        shutil.copy(dataset / "videos" / f"video{i}.mp4", videos / f"{i}.mp4")
    (videos / "broken.mp4").write_bytes(b"no video")
    call(INDEX, "--model", trained, "--videos", videos, "--index", index)
    out = capsys.readouterr()
    assert "5 videos, 5 windows (5 new" in out.out and "1 videos unreadable" in out.out and "broken.mp4" in out.err
    (videos / "0.mp4").unlink()
    shutil.copy(dataset / "videos" / "video8.mp4", videos / "1.mp4")
    shutil.copy(dataset / "videos" / "video9.mp4", videos / "sub" / "new.mp4")
    (videos / "2.mp4").touch()  # the same content
    (videos / "3.mp4").write_bytes(b"damaged since")
    call(INDEX, "--model", trained, "--videos", videos, "--index", index)
    out = capsys.readouterr()
    assert "4 videos, 4 windows (1 new, 1 changed, 2 unchanged, 2 removed), 2 videos unreadable" in out.out
    words = ("--index", index, "--k", 3, "--json", tmp_path / "hits.json")
    call(SEARCH, "--video", dataset / "videos" / "video9.mp4", *words)
    hits = json.loads((tmp_path / "hits.json").read_text())["results"]
    assert len(hits) == 3 and hits[0]["video"].endswith("sub/new.mp4")
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4) and hits[0]["start"] == 0 and hits[0]["end"] > 0.5
    call(SEARCH, "--text", "a ball rolls", *words)
    scores = [hit["score"] for hit in json.loads((tmp_path / "hits.json").read_text())["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    with pytest.raises(UserError, match="idx"):
        call(INDEX, "--base", "tiny", "--videos", videos, "--index", index)
    with pytest.raises(UserError, match=r"broken\.mp4|3\.mp4"):
        call(INDEX, "--model", trained, "--videos", videos, "--index", index, "--strict")


def test_long_videos_are_found_by_window(trained: Path, dataset: Path, tmp_path: Path, capsys):
    videos, index = tmp_path / "videos", tmp_path / "idx"
    videos.mkdir()
    shutil.copy(dataset / "videos" / "video0.mp4", videos / "long.mp4")
    call(INDEX, "--model", trained, "--videos", videos, "--index", index, "--window", 0.6, "--stride", 0.4)
    pipeline = vlkit.load(trained, device="cpu")
    cut = VideoWindows(videos, 0.6, 0.4).items_of(videos / "long.mp4")
    assert len(cut) >= 2 and f"{len(cut)} windows ({len(cut)} new" in capsys.readouterr().out
    last = cut[-1].metadata
    vector = pipeline.embed_videos([(videos / "long.mp4", last["start"], last["end"])])
    hit = vlkit.index.VectorIndex.open(index).search(vector, 1)[0][0]
    assert hit.item.metadata == last and hit.score == pytest.approx(1, abs=1e-4)
    call(INDEX, "--model", trained, "--videos", videos, "--index", index, "--window", 0.6, "--stride", 0.4)
    assert f"{len(cut)} unchanged" in capsys.readouterr().out
    call(INDEX, "--model", trained, "--videos", videos, "--index", index)  # cut another way
    assert f"1 windows (1 new, 0 changed, 0 unchanged, {len(cut)} removed)" in capsys.readouterr().out


def test_unchanged_videos_are_not_opened(dataset: Path, tmp_path: Path, monkeypatch):
    path = tmp_path / "a.mp4"
    shutil.copy(dataset / "videos" / "video0.mp4", path)
    items = VideoWindows(tmp_path, 0.5).items_of(path)
    opened = []
    monkeypatch.setattr("vlkit.index.media.duration_of", lambda path: opened.append(path) or 3.0)
    assert VideoWindows(tmp_path, 0.5, known=items).items_of(path) == items and not opened
    # A part was lost in a crash, the file was touched, or it is to be cut another way: it has to be looked at again.
    VideoWindows(tmp_path, 0.5, known=items[:-1]).items_of(path)
    VideoWindows(tmp_path, 0.4, known=items).items_of(path)
    path.touch()
    VideoWindows(tmp_path, 0.5, known=items).items_of(path)
    assert opened == [path] * 3
    assert VideoWindows(tmp_path, 0.5).part(items[0]) == (path, 0.0, 0.5)
    assert VideoWindows(tmp_path).part(VideoWindows(tmp_path).items_of(path)[0]) == (path, None, None)


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        (TRAIN, ("--data.root", "no/such/folder"), "no/such/folder"),
        (TRAIN, ("--frames", 200, "--head.temporal", "transformer"), "--frames 200"),
        (TRAIN, ("--frame_chunk", -1), "--frame_chunk -1"),
        (TRAIN, ("--frames", 0), "--frames 0"),
        (TRAIN, ("--data.hold_out", 2), "--data.hold_out 2"),
        (TRAIN, ("--head.temporal", "max"), "temporal"),
        (EVALUATE, (), "--model"),
        (EVALUATE, ("--base", "tiny", "--split", "val"), 'no split "val"'),
        (INDEX, ("--videos", "no/such/videos", "--index", "i", "--base", "tiny"), "no/such/videos"),
        (INDEX, ("--videos", ".", "--index", "i", "--base", "tiny", "--stride", 1), "--stride"),
        (SEARCH, ("--index", "no/such/index", "--text", "x"), "no/such/index"),
        (SEARCH, ("--index", "i"), "--text"),
    ],
)
def test_wrong_input_is_named(script: str, words: tuple, named: str, dataset: Path, tmp_path: Path):
    if script == TRAIN:
        words = (*words, "--output", tmp_path / "run", *(() if "--data.root" in words else ("--data.root", dataset)))
    if script == EVALUATE and words:
        words = (*words, "--data.root", dataset)
    with pytest.raises(UserError) as error:
        call(script, *words)
    assert named in str(error.value)


@pytest.mark.slow
def test_wrong_input_is_one_line_and_exit_code_2(dataset: Path, tmp_path: Path):
    done = launch(EVALUATE, "--model", "no/such/run", "--data.root", dataset, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(lines) == 1 and "no/such/run" in lines[0] and "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_train_as_one(dataset: Path, tmp_path: Path):
    words = ("--data.root", dataset, *QUICK, "--lr", 0.0005, "--head.temporal", "lstm")
    call(TRAIN, "--output", tmp_path / "one", *words)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    two = [*launcher, "--standalone", str(ROOT / TRAIN), "--output", str(tmp_path / "two"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, both = (load_file(tmp_path / name / "vlkit_adapter.safetensors") for name in ("one", "two"))
    # AdamW divides a gradient by its size: where it is almost zero, the order of a sum can turn an update round.
    apart = torch.cat([(one[name] - both[name]).abs().flatten() for name in one])
    allowed = torch.cat([1e-4 + 1e-3 * one[name].abs().flatten() for name in one])
    assert (apart > allowed).float().mean() < 5e-3 and apart.max() < 2 * 0.0005


@pytest.mark.slow
def test_resumed_run_ends_with_the_same_weights(dataset: Path, tmp_path: Path):
    words = ("--data.root", dataset, *QUICK, "--epochs", 2, "--sampling", "segment", "--checkpoint_every", 1)
    call(TRAIN, "--output", tmp_path / "whole", *words)
    process = subprocess.Popen(
        command(TRAIN, "--output", tmp_path / "cut", *words, "--log_every", 1), stderr=subprocess.PIPE
    )
    log = tmp_path / "cut" / "log.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    call(TRAIN, "--output", tmp_path / "cut", *words, "--log_every", 1, "--resume")
    whole, cut = (load_file(tmp_path / name / "vlkit_adapter.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_other_data_is_measured_without_and_with_the_adapter(trained: Path, dataset: Path, tmp_path: Path):
    options = ("--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "m.json")
    call(EVALUATE, *options, "--mix", 0)
    without = json.loads((tmp_path / "m.json").read_text())
    call(EVALUATE, *options, "--also", dataset)
    found = json.loads((tmp_path / "m.json").read_text())
    (other,) = found["also"].values()
    assert other["split"] == "test" and other["root"] == str(dataset)
    assert other["after"]["rsum"] == pytest.approx(found["rsum"])
    assert other["before"]["rsum"] == pytest.approx(without["rsum"])
    with pytest.raises(UserError, match=r"dataset\.json"):
        call(EVALUATE, *options, "--also", tmp_path)


def test_training_may_start_without_measuring_before(dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, "--before", "false")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"] == {} and "before_is" not in metrics and metrics["after"]["rsum"] >= 0
