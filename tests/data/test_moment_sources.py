"""Moment and highlight sets: official files become prepared datasets, and what is wrong in them is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.scripts import call, refuse
from vlkit.data.manifest import Dataset
from vlkit.data.records import record_problem
from vlkit.data.sources import (
    charades_sta,
    ego4d_nlq,
    own_moments,
    qvhighlights,
    tacos,
    tvsum,
    youtube_highlights,
)
from vlkit.errors import UserError

LINE = {
    **{"qid": 42, "query": " A dog runs.", "duration": 150, "vid": "v1_0.0_150.0", "relevant_windows": [[26, 30]]},
    **{"relevant_clip_ids": [13, 14], "saliency_scores": [[4, 4, 2], [3, 4, 2]]},
}


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


def test_qvhighlights(tmp_path: Path) -> None:
    lines(tmp_path / "highlight_train_release.jsonl", LINE)
    lines(tmp_path / "highlight_test_release.jsonl", {k: LINE[k] for k in ("query", "duration", "vid")} | {"qid": 43})
    source = qvhighlights.read(tmp_path)
    (record,) = source.splits["train"]
    assert (
        record["id"] == "qvhighlights/42" and record["video"] == "v1_0.0_150.0.mp4" and record["text"] == "A dog runs."
    )
    assert record["windows"] == [[26, 30]] and record["clip_ids"] == [13, 14]
    assert record_problem(record, "moment_retrieval") is None
    assert "windows" not in source.splits["test"][0] and source.inputs["fps"] == 0.5
    assert "v1_0.0_150.0.mkv" in set(source.elsewhere("v1_0.0_150.0.mp4"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"qid": None}, 'field "qid"'),
        ({"vid": 3}, 'field "vid"'),
        ({"relevant_windows": [[1]]}, "expected are [start, end]"),
        ({"relevant_windows": [["a", 2]]}, "expected is a number of seconds"),
        ({"duration": "long"}, 'field "duration"'),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, change: dict, problem: str) -> None:
    lines(tmp_path / "train.jsonl", LINE, {**LINE, "qid": 1, **change})
    with pytest.raises(UserError, match="train.jsonl:2: .*" + problem.replace("[", r"\[").replace("]", r"\]")):
        qvhighlights.read(tmp_path)


def test_wrong_annotations_are_listed_and_left_out_with_partial(tmp_path: Path) -> None:
    wrong = [
        {**LINE, "qid": 1, "relevant_windows": [[200, 220]]},
        {**LINE, "qid": 2, "saliency_scores": [[9, 9, 9], [1, 1, 1]]},
        {**LINE, "qid": 3, "relevant_clip_ids": [1]},
        {**LINE, "qid": 4, "duration": 0},
    ]
    lines(tmp_path / "train.jsonl", LINE, *wrong)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v1_0.0_150.0.webm").touch()
    words = ("--annotations", tmp_path, "--videos", tmp_path, "--output", tmp_path / "out")
    assert "lies outside the video" in refuse("data_prep/qvhighlights.py", *words)
    call("data_prep/qvhighlights.py", *words, "--partial")
    (record,) = Dataset.open(tmp_path / "out", "moment_retrieval").records("train")
    assert record["video"] == "videos/v1_0.0_150.0.webm"
    assert len((tmp_path / "out" / "wrong.txt").read_text().splitlines()) == 4


def test_no_file_or_an_empty_one_is_named(tmp_path: Path) -> None:
    for read in (qvhighlights.read, charades_sta.read, tacos.read, ego4d_nlq.read, tvsum.read, youtube_highlights.read):
        with pytest.raises(UserError, match=str(tmp_path)):
            read(tmp_path)
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no lines"):
        qvhighlights.read(tmp_path)
    (tmp_path / "train.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"train\.jsonl:1: not a JSON object"):
        tacos.read(tmp_path)


def test_charades_sta(tmp_path: Path) -> None:
    (tmp_path / "charades_sta_train.txt").write_text("AB12C 3.5 10.2##person opens ## the door.\n")
    (tmp_path / "charades_sta_test.txt").write_text("ZZ 0.0 99.0##person sits\n\nZZ 40.0 50.0##person stands\n")
    (tmp_path / "Charades_v1_test.csv").write_text("id,length\nZZ,30.96\n")
    (tmp_path / "Charades_v1_classes.csv").write_text("c000,Holding\n")
    source = charades_sta.read(tmp_path)
    (record,) = source.splits["train"]
    assert record["text"] == "person opens ## the door." and record["windows"] == [[3.5, 10.2]]
    assert [r["duration"] for r in source.splits["test"]] == [30.96]
    assert len(source.wrong) == 1 and "lies outside" in source.wrong[0] and "1 windows end after" in source.notes[0]
    assert (source.inputs["unit"], source.inputs["nms"]) == (0.1, "linear")
    (tmp_path / "charades_sta_train.txt").write_text("AB12C 3.5##no\n")
    with pytest.raises(UserError, match=r"charades_sta_train.txt:1: expected is <video>"):
        charades_sta.read(tmp_path)


def test_tacos_in_both_forms(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", {**LINE, "vid": "s13-d21", "qid": "a"}, {**LINE, "vid": "s14-cam-002", "qid": "b"})
    entry = {"timestamps": [[30, 90]], "sentences": ["He cuts."], "fps": 30.0, "num_frames": 900}
    (tmp_path / "val.json").write_text(json.dumps({"s15-d1.avi": entry}))
    source = tacos.read(tmp_path)
    assert [r["video"] for r in source.splits["train"]] == ["s13-d21-cam-002.mp4", "s14-cam-002.mp4"]
    (record,) = source.splits["val"]
    assert record["windows"] == [[1.0, 3.0]] and record["duration"] == 30.0
    assert {"s15-d1-cam-002.avi", "s15-d1.avi"} <= set(source.elsewhere(record["video"]))
    (tmp_path / "val.json").write_text(json.dumps({"x": {**entry, "sentences": []}}))
    with pytest.raises(UserError, match="1 timestamps and 0 sentences"):
        tacos.read(tmp_path)


def test_ego4d_as_released(tmp_path: Path) -> None:
    query = {"clip_start_sec": 7.2, "clip_end_sec": 11.2, "query": "Where is the knife?"}
    annotation = {"annotation_uid": "u", "language_queries": [query, {**query, "query": None}]}
    clip = {"clip_uid": "c1", "video_start_sec": 10.0, "video_end_sec": 490.0, "annotations": [annotation]}
    (tmp_path / "nlq_train.json").write_text(json.dumps({"videos": [{"video_uid": "v", "clips": [clip]}]}))
    source = ego4d_nlq.read(tmp_path)
    (record,) = source.splits["train"]
    assert (record["video"], record["windows"], record["duration"]) == ("c1.mp4", [[7.2, 11.2]], 480.0)
    assert source.blank_texts == 1
    (tmp_path / "nlq_train.json").write_text(json.dumps({"videos": [{"clips": [{"clip_uid": "c1"}]}]}))
    with pytest.raises(UserError, match='clip c1: field "annotations" is missing'):
        ego4d_nlq.read(tmp_path)


def test_tvsum_has_a_split_for_each_domain(tmp_path: Path) -> None:
    entry = {"title": "changing a tyre", "anno": [[3] * 20, [5] * 20]}
    anno = {video: entry for row in tvsum.DOMAINS.values() for video in row.split()}
    (tmp_path / "tvsum_anno.json").write_text(json.dumps({**anno, "own": entry}))
    source = tvsum.read(tmp_path)
    assert (
        len(source.splits["train"]) == 41 and len(source.splits["val"]) == 10 and "1 videos are not" in source.notes[0]
    )
    assert all(len(source.splits[f"train_{d}"]) == 4 and len(source.splits[f"val_{d}"]) == 1 for d in tvsum.DOMAINS)
    assert len({video for row in tvsum.DOMAINS.values() for video in row.split()}) == 50
    assert record_problem(source.splits["val_VU"][0], "moment_retrieval") is None
    for wrong in ([[6] * 20], [[3] * 19], []):
        (tmp_path / "tvsum_anno.json").write_text(json.dumps({"a": {**entry, "anno": wrong}}))
        with pytest.raises(UserError, match='a: field "anno"'):
            tvsum.read(tmp_path / "tvsum_anno.json")


def test_youtube_highlights(tmp_path: Path) -> None:
    entry = {"frames": 300, "fps": 30.0, "match": [1, 0, -1], "info": [0, 0, 0, 0, 0, "dog"]}
    (tmp_path / "youtube_anno.json").write_text(json.dumps({f"v{k}": entry for k in range(6)}))
    source = youtube_highlights.read(tmp_path)
    assert [r["id"] for r in source.splits["val_dog"]] == ["youtube_highlights/v2", "youtube_highlights/v5"]
    assert source.splits["train"][0]["duration"] == 10.0
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"dog": {"train": ["v0"], "val": ["v1"]}}))
    assert [r["vid"] for r in youtube_highlights.read(tmp_path, lists).splits["val"]] == ["v1"]
    lists.write_text(json.dumps({"dog": {"train": ["v9"], "val": []}}))
    with pytest.raises(UserError, match="dog: v9 are not in the annotations"):
        youtube_highlights.read(tmp_path, lists)


def test_own_moments(tmp_path: Path) -> None:
    table = tmp_path / "moments.csv"
    rows = [f"v{k}.mp4,{k},{k + 2},a dog jumps" for k in range(10)]
    table.write_text("Video,start,end,text\n" + "\n".join([*rows, "v3.mp4,9,12,a dog  jumps"]) + "\n")
    source = own_moments.read(table)
    records = [record for own in source.splits.values() for record in own]
    assert {split: len(own) for split, own in source.splits.items()} == {"train": 8, "val": 1, "test": 1}
    assert next(r for r in records if r["video"] == "v3.mp4")["windows"] == [[3.0, 5.0], [9.0, 12.0]]
    table.write_text("video,start,end,text,split\na.mp4,0,1,x,train\nb.mp4,5,4,y,val\nb.mp4,1,4,y,val\n")
    source = own_moments.read(table)
    assert {split: len(own) for split, own in source.splits.items()} == {"train": 1, "val": 1}
    assert "moments.csv:3" in source.wrong[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("video,start,text\n", 'no column "end"'),
        ("video,start,end,text\n", "holds no rows"),
        ("video,start,end,text\na.mp4,0,1,\n", 'csv:2: column "text" is empty'),
        ("video,start,end,text\na.mp4,0,1,x,y\n", "csv:2: 5 columns where the header has 4"),
        ("video,start,end,text\na.mp4,zero,1,x\n", 'csv:2: field "start"'),
        ("video,start,end,text,split\na.mp4,0,1,x,val\na.mp4,0,1,y,test\n", "csv:3: .* use one split"),
    ],
)
def test_own_tables_that_are_wrong(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=problem):
        own_moments.read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r.pop("text"), 'field "text" is missing'),
        (lambda r: r.update(windows=[[1]]), 'field "windows"'),
        (lambda r: r.update(windows="x"), 'field "windows"'),
        (lambda r: r.update(duration=0), 'field "duration"'),
        (lambda r: r.update(scores=[[1, 7]]), 'field "scores"'),
        (lambda r: r.update(match=[2]), 'field "match"'),
        (lambda r: r.update(clip_ids=[1]), '"clip_ids" and "saliency"'),
        (lambda r: r.update(clip_ids=[1], saliency=[[]]), 'field "saliency"'),
    ],
)
def test_wrong_records_are_named(change: Callable[[dict], object], problem: str) -> None:
    record = {"id": "a", "video": "a.mp4", "text": "x", "windows": [[0, 1]]}
    assert record_problem(record, "moment_retrieval") is None
    change(record)
    assert problem in str(record_problem(record, "moment_retrieval"))
