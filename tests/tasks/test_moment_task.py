"""Moment retrieval from the official files to predictions, on a few short films."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vlkit
from helpers.films import film
from helpers.scripts import call, refuse
from helpers.short_films import write_short_films
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.video.clip_frames import duration_of
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.tap_cache.clips import ClipTapCache
from vlkit.tap_cache.images import cached_images
from vlkit.tasks.moment_retrieval.data import ClipsReader, MomentCollate, MomentExamples
from vlkit.tasks.moment_retrieval.evaluate import MomentFinder
from vlkit.tasks.moment_retrieval.head import MomentOptions
from vlkit.tasks.moment_retrieval.model import METHODS, build_model

SMALL = ("--head.hidden", 16, "--epochs", 1, "--batch_size", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return write_short_films(tmp_path_factory.mktemp("films"), patch)


@pytest.fixture(scope="module")
def dataset(films: Path) -> Path:
    call("data_prep/qvhighlights.py", "--annotations", films, "--videos", films / "videos", "--output", films / "data")
    return films / "data"


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    words = ("--data.root", dataset, "--output", out / "r2", "--cache", out / "taps", *SMALL)
    call("tasks/moment_retrieval/train.py", *words)
    return out / "r2"


def reader_of(base) -> ClipsReader:
    return ClipsReader(base.preprocess, 0.5)


def test_training_reports_moments_and_highlights(run: Path) -> None:
    metrics = read_json(run / "metrics.json")
    assert metrics["task"] == "moment_retrieval" and metrics["before_is"].startswith("fixed windows of")
    for name in ("r1@0.5", "r1@0.7", "map", "map@0.5", "hl_map", "hl_hit1"):
        assert 0 <= metrics["after"][name] <= 100 and 0 <= metrics["before"][name] <= 100
    assert (metrics["fps"], metrics["unit"], metrics["nms"]) == (0.5, 2.0, "hard")
    assert metrics["saved_activation_bytes"] > 0


def test_an_evaluation_repeats_the_report(run: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    call("tasks/moment_retrieval/evaluate.py", "--model", run, "--data.root", dataset, "--json", out)
    found, reported = read_json(out), read_json(run / "metrics.json")["after"]
    # Training evaluated the states as the cache holds them, in bf16.
    assert found["hl_map"] == pytest.approx(reported["hl_map"], abs=15)
    assert set(reported) <= set(found)


@pytest.mark.parametrize("kind", ["r2", "sherl"])
def test_cached_states_give_the_predictions_of_the_frames(kind: str, dataset: Path, tmp_path: Path) -> None:
    base, fabric = load_base("tiny"), make_fabric("cpu")
    text, examples = text_side("clip", base), MomentExamples(Dataset.open(dataset), "train", reader_of(base))
    model = build_model(base, METHODS[kind](), MomentOptions(16)).eval()
    given = (tmp_path, "fp32", examples, model, base, text, fabric)
    options = {
        "preprocess": base.preprocess.to_dict(),
        "name": "moments",
        "sampling": {"frames": 8},
        "cache": ClipTapCache,
    }
    cached = cached_images(*given, **options)
    plain = MomentCollate(text.tokenize)([examples[0], examples[1]])
    rows = MomentCollate(cached.read, cached.stack)([cached[0], cached[1]])
    frames, ids = cached.images.complete(rows.frames), cached.texts.complete(rows.ids)
    with torch.no_grad():
        expected, found = model(plain.frames, plain.ids), model(frames, ids)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.frames, expected.frames, rtol=1e-4, atol=1e-4)


def test_python_gives_moments_highlights_and_a_summary(run: Path, films: Path) -> None:
    model, video = vlkit.load(run, device="cpu"), films / "videos" / "test0.mp4"
    length = duration_of(video)
    moments = model.moments(video, "a red ball", k=3)
    assert 1 <= len(moments) <= 3 and [m[2] for m in moments] == sorted((m[2] for m in moments), reverse=True)
    assert all(0 <= start < end <= length and 0 < score <= 1 for start, end, score in moments)
    curve = model.highlights(video)
    assert curve[0][0] == 0 and curve[-1][1] == pytest.approx(length)
    assert [row[1] for row in curve[:-1]] == [row[0] for row in curve[1:]]
    assert model.highlights(video, "a ball", k=2)[0][2] >= model.highlights(video, "a ball", k=2)[1][2]
    assert sum(end - start for start, end in model.summary(video, 5)) <= 5
    for wrong in (lambda: model.moments(video, " "), lambda: model.moments(video, "a", k=0)):
        with pytest.raises(UserError):
            wrong()
    with pytest.raises(UserError, match="no_such"):
        model.moments(films / "no_such.mp4", "a ball")


def test_predictions_of_a_video_and_of_a_split(run: Path, dataset: Path, films: Path, tmp_path: Path) -> None:
    script, video = "tasks/moment_retrieval/predict.py", films / "videos" / "test0.mp4"
    out, clip = tmp_path / "found.json", tmp_path / "short.mp4"
    words = ("--video", video, "--text", "a ball", "--summary", 4, "--clip", clip, "--json", out)
    call(script, "--model", run, *words)
    found = read_json(out)
    assert found["moments"] and found["saliency"] and found["summary"]
    seconds = sum(part["end"] - part["start"] for part in found["summary"])
    assert seconds <= 4 and duration_of(clip) == pytest.approx(seconds, abs=0.2)
    lines = tmp_path / "submission.jsonl"
    call(script, "--model", run, "--data.root", dataset, "--split", "test", "--submission", lines)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    truth = {r["qid"]: r for r in Dataset.open(dataset).records("test")}
    assert {row["qid"] for row in rows} == set(truth)
    for row in rows:
        record = truth[row["qid"]]
        assert (row["vid"], row["query"]) == (record["vid"], record["text"])
        assert len(row["pred_saliency_scores"]) == int(record["duration"] / 2)
        scores = [window[2] for window in row["pred_relevant_windows"]]
        assert scores == sorted(scores, reverse=True)
    assert not lines.with_name("submission.jsonl.part").exists()
    for wrong in ((), ("--split", "test"), ("--video", video), ("--video", video, "--text", "a", "--clip", clip)):
        refuse(script, "--model", run, *wrong)
    assert "no split" in refuse(script, "--model", run, "--data.root", dataset, "--split", "x", "--submission", lines)


def test_an_interrupted_submission_goes_on(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, asked = tmp_path / "s.jsonl", []
    words = ("--model", run, "--data.root", dataset, "--split", "test", "--submission", lines)
    plain = MomentFinder.find

    def find(self, read, timeline, queries):
        asked.append(len(queries))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain(self, read, timeline, queries)

    monkeypatch.setattr(MomentFinder, "find", find)
    with pytest.raises(KeyboardInterrupt):
        call("tasks/moment_retrieval/predict.py", *words)
    with open(tmp_path / "s.jsonl.part", "a") as file:
        file.write("[3, {")  # a line that a crash cut
    call("tasks/moment_retrieval/predict.py", *words)
    records = Dataset.open(dataset).records("test")
    assert len(asked) == 3 and sum(asked[::2]) == len(records)
    assert [json.loads(line)["qid"] for line in lines.read_text().splitlines()] == [r["qid"] for r in records]


def test_a_search_is_refined_to_moments(run: Path, films: Path, tmp_path: Path) -> None:
    index, hits = tmp_path / "index", tmp_path / "hits.json"
    words = ("--videos", films / "videos", "--index", index, "--base", "tiny", "--window", 4)
    call("tasks/video_retrieval/index.py", *words)
    search = ("tasks/video_retrieval/search.py", "--index", index, "--text", "a ball", "--k", 3)
    call(*search, "--refine", run, "--json", hits)
    found = read_json(hits)["results"]
    assert 1 <= len(found) <= 3 and any("moment_score" in hit for hit in found)
    for hit in found:
        if "window" in hit:
            assert hit["start"] < hit["window"][1] and hit["end"] > hit["window"][0]
    assert "--refine" in refuse(*search[:3], "--image", films / "x.png", "--refine", run)


# --- odd data ---


def prepared(folder: Path, splits: dict[str, list[dict]], **source: object) -> Dataset:
    return write_dataset(
        folder / "data", name="odd", task="moment_retrieval", splits=splits, media_root=folder, source=source
    )


def test_short_videos_and_odd_windows_are_handled_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film(tmp_path / "short.mp4", 8)  # 0.8 s: shorter than one clip
    film(tmp_path / "long.mp4", 120)
    record = {"video": "long.mp4", "text": "a square"}
    records = [
        {"id": "past", **record, "windows": [[10, 99]]},
        {"id": "reversed", **record, "windows": [[8, 2]]},
        {"id": "none", **record, "windows": []},
        {"id": "short", "video": "short.mp4", "text": "a square", "windows": [[0, 0.5]]},
        {"id": "unknown", **record},
    ]
    dataset = prepared(tmp_path, {"train": records})
    reader = reader_of(load_base("tiny"))
    examples = MomentExamples(dataset, "train", reader, training=True)
    assert [record["id"] for record in examples.records] == ["past", "reversed", "none"]
    assert "1 records are shorter than 5 s" in caplog.text and "1 records have no labels" in caplog.text
    past, swapped, none = (examples[index] for index in range(3))
    assert past.windows.tolist() == [[5, 6]] and swapped.windows.tolist() == [[1, 4]]
    assert none.windows.shape == (0, 2) and none.positive == -1 and past.positive == 5
    assert past.frames.shape[0] == 6 and past.frames.dtype == torch.uint8
    whole = MomentExamples(dataset, "train", reader)
    assert whole.timelines[3].clips == 1 and whole[3].frames.shape[0] == 1


def test_highlight_sets_train_and_report_their_own_metric(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = []
    for name in ("a", "b"):
        film(tmp_path / f"{name}.mp4", 60)
        scores = rng.integers(1, 6, size=(5, 20)).tolist()
        records.append({"id": name, "video": f"{name}.mp4", "text": "changing a tyre", "scores": scores})
    prepared(tmp_path, {"train": records, "val": records})
    words = ("--data.root", tmp_path / "data", "--output", tmp_path / "run", "--cache", tmp_path / "taps")
    call("tasks/moment_retrieval/train.py", *words, *SMALL)
    assert set(read_json(tmp_path / "run" / "metrics.json")["after"]) == {"hl_map"}
    model = vlkit.load(tmp_path / "run", device="cpu")
    assert len(model.highlights(tmp_path / "a.mp4", "changing a tyre")) == 3
    with pytest.raises(UserError, match="highlights alone"):
        model.moments(tmp_path / "a.mp4", "changing a tyre")


def test_wrong_flags_and_data_are_refused(dataset: Path, tmp_path: Path) -> None:
    script, out = "tasks/moment_retrieval/train.py", ("--output", tmp_path / "run", "--data.root", dataset)
    assert "--adapter.last 9" in refuse(script, *out, "--adapter.kind", "r2", "--adapter.last", 9)
    assert "--head.strides" in refuse(script, *out, "--head.strides", "[1,3]")
    assert "--head.hidden 12" in refuse(script, *out, "--head.hidden", 12)
    assert "--fps 0" in refuse(script, *out, "--fps", 0)
    film(tmp_path / "a.mp4", 60)
    mixed = [
        {"id": "a", "video": "a.mp4", "text": "x", "windows": [[0, 1]]},
        {"id": "b", "video": "a.mp4", "text": "x", "match": [1, 0]},
    ]
    prepared(tmp_path, {"train": mixed, "val": mixed})
    assert "several kinds" in refuse(script, "--output", tmp_path / "run2", "--data.root", tmp_path / "data")


def test_other_data_is_measured_without_and_with_the_adapter(run: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    call("tasks/moment_retrieval/evaluate.py", "--model", run, "--data.root", dataset, "--json", out, "--also", dataset)
    found = read_json(out)
    (other,) = found["also"].values()
    assert other["after"]["hl_map"] == pytest.approx(found["hl_map"]) and set(other["before"]) == set(other["after"])


def test_training_may_start_without_measuring_before(dataset: Path, tmp_path: Path):
    call(
        "tasks/moment_retrieval/train.py",
        "--data.root",
        dataset,
        "--output",
        tmp_path / "run",
        *SMALL,
        "--before",
        "false",
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"] == {} and "before_is" not in metrics and metrics["after"]["map"] >= 0
