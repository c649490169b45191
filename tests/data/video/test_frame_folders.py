"""Frame folders: what is in them, kills and restarts, failures, and who uses them."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from helpers.films import cut, film, sound, written
from helpers.scripts import command, launch
from vlkit.data.check import check_dataset
from vlkit.data.isolated import Lost, isolated
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.video.clip_frames import read_frames
from vlkit.data.video.frame_folders import QUALITY, Layout, folder_name, layouts
from vlkit.data.video.frame_source import FrameSource
from vlkit.data.video.make_frames import make_frames
from vlkit.errors import UserError


def prepared(root: Path, records: dict[str, list[dict]]) -> Dataset:
    root.mkdir(parents=True, exist_ok=True)
    splits = {split: [{"texts": ["a clip"], **record} for record in group] for split, group in records.items() if group}
    return write_dataset(root, name="v", task="video_retrieval", splits=splits, media_root="videos", source="test")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three good clips, one of them with times, one short."""
    folder = tmp_path / "data" / "videos"
    film(folder / "a.mp4", 30)
    film(folder / "b.webm", 20, "libvpx", options={"deadline": "realtime", "cpu-used": "8"})
    film(folder / "c.mp4", 3)
    train = [{"id": "x/a", "video": "a.mp4", "start": 1.0, "end": 2.0}, {"id": "x/b", "video": "b.webm"}]
    return prepared(tmp_path / "data", {"train": train, "test": [{"id": "x/c", "video": "c.mp4"}]})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- Making them -----------------------------------------------------------------------------------------------------


def test_folders_hold_the_frames_and_their_times(dataset: Dataset) -> None:
    made = make_frames(dataset, 4, 72, 1, 60)
    assert (made.made, made.there, made.failed) == (3, 0, [])
    folder = dataset.root / "frames" / "4x72"
    assert sorted(os.listdir(folder)) == ["x%2Fa", "x%2Fb", "x%2Fc"]
    assert sorted(os.listdir(folder / "x%2Fa")) == ["00.jpg", "01.jpg", "02.jpg", "03.jpg", "clip.json"]
    assert len(list((folder / "x%2Fc").glob("*.jpg"))) == 3
    content = json.loads((folder / "x%2Fa" / "clip.json").read_text())
    assert content["times"] == pytest.approx([1.0, 1.3, 1.6, 1.9])
    assert (content["video"], content["start"], content["end"]) == ("a.mp4", 1.0, 2.0)
    with Image.open(folder / "x%2Fa" / "02.jpg") as image:
        assert image.size == (80, 72)
        decoded = read_frames(dataset.path("a.mp4"), 4, 1.0, 2.0, size=72).frames[2].astype(int)
        assert np.abs(np.asarray(image) - decoded).mean() < 3 and QUALITY > 90
    again = make_frames(dataset, 4, 72, 1, 60)
    assert (again.made, again.there) == (0, 3)


@pytest.mark.slow
def test_script_lists_failures_and_leaves_the_rest(dataset: Dataset) -> None:
    videos = dataset.root / "videos"
    cut(film(videos / "cut.mp4", 20), 0.5)
    written(videos / "empty.mp4", b"")
    sound(videos / "sound.mp4")
    names = ("cut", "empty", "sound", "gone")
    bad = [{"id": name, "video": f"{name}.mp4"} for name in names]
    prepared(dataset.root, {"train": [*bad, *dataset.records("train")], "test": dataset.records("test")})
    words = ("data_prep/frames.py", dataset.root, "--frames", 4, "--size", 72, "--workers", 2)
    result = launch(*words)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "4 clips failed" in result.stderr
    assert "7 clips" not in result.stdout and "3 clips (3 made, 0 there already, 4 failed)" in result.stdout
    rows = [row.split("\t") for row in (dataset.root / "frames" / "4x72-failed.txt").read_text().splitlines()]
    assert [row[:2] for row in rows] == [[name, f"{name}.mp4"] for name in names]
    reasons = [row[2] for row in rows]
    assert reasons[1:] == ["empty file", "no video stream (only sound)", "missing"] and "truncated" in reasons[0]
    for name in names:  # fixed: only these are made, and the list goes
        film(videos / f"{name}.mp4", 5)
    result = launch(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "7 clips (4 made, 3 there already, 0 failed)" in result.stdout
    assert sorted(os.listdir(dataset.root / "frames")) == [".4x72.lock", "4x72"]


def test_what_does_not_fit_is_made_again(dataset: Dataset) -> None:
    layout = make_frames(dataset, 4, 72, 1, 60).layout
    complete = tree(layout.path)
    (layout.path / "x%2Fa" / "01.jpg").unlink()
    (layout.path / "x%2Fb" / "clip.json").write_text("{")
    film(dataset.root / "videos" / "c.mp4", 4)
    made = make_frames(dataset, 4, 72, 1, 60)
    assert (made.made, made.there) == (3, 0)
    now = tree(layout.path)
    assert {name: now[name] for name in now if "x%2Fc" not in name} == {
        name: complete[name] for name in complete if "x%2Fc" not in name
    }
    assert len(list((layout.path / "x%2Fc").glob("*.jpg"))) == 4


def test_one_id_for_two_clips_is_refused(dataset: Dataset) -> None:
    both = {"train": [{"id": "one", "video": "a.mp4"}], "test": [{"id": "one", "video": "c.mp4"}]}
    with pytest.raises(UserError, match=r"test.jsonl: record 'one' is another clip"):
        make_frames(prepared(dataset.root, both), 4, 72, 1, 60)
    same = {"train": [{"id": "one", "video": "a.mp4"}], "test": [{"id": "one", "video": "a.mp4"}]}
    assert make_frames(prepared(dataset.root, same), 4, 72, 1, 60).made == 1


def test_two_runs_at_a_time_are_refused(dataset: Dataset) -> None:
    (dataset.root / "frames").mkdir()
    with filelock.FileLock(dataset.root / "frames" / ".4x72.lock"), pytest.raises(UserError, match="another run"):
        make_frames(dataset, 4, 72, 1, 60)


@pytest.mark.slow
def test_wrong_flags_and_datasets(dataset: Dataset, tmp_path: Path) -> None:
    result = launch("data_prep/frames.py", dataset.root, "--frames", 0)
    assert result.returncode == 2 and "--frames 0: give more than 0" in result.stderr
    result = launch("data_prep/frames.py", tmp_path)
    assert result.returncode == 2 and "not a prepared dataset" in result.stderr


def children(pid: int) -> set[int]:
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_killed_three_times_ends_with_the_same_tree(tmp_path: Path) -> None:
    count = 16
    first = film(tmp_path / "one" / "videos" / "0.mp4", 60, width=640, height=480)
    for number in range(1, count):
        shutil.copy(first, first.with_name(f"{number}.mp4"))
    records = [{"id": f"set/{number}", "video": f"{number}.mp4"} for number in range(count)]
    one = prepared(tmp_path / "one", {"train": records})
    shutil.copytree(one.root, tmp_path / "two")
    words = ("--workers", 2, "--size", 400)
    assert launch("data_prep/frames.py", one.root, *words).returncode == 0

    folder = Layout(tmp_path / "two", 12, 400).path
    reached = [0]
    while len(reached) <= 3:
        process = subprocess.Popen(
            command("data_prep/frames.py", tmp_path / "two", *words),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and len(list(folder.glob("*"))) <= reached[-1]:
            time.sleep(0.002)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        deadline = time.monotonic() + 5
        while any(map(runs, workers)):
            assert time.monotonic() < deadline, "worker processes outlive the killed run"
            time.sleep(0.01)
        reached.append(len(list(folder.glob("*"))))
    assert 0 < reached[1] < reached[2] < reached[3] < count  # each was killed at work, and the next went on
    result = launch("data_prep/frames.py", tmp_path / "two", *words)
    assert result.returncode == 0 and f"{reached[3]} there already" in result.stdout
    assert tree(tmp_path / "two" / "frames") == tree(one.root / "frames")
    assert len(os.listdir(folder)) == count


# --- Using them ------------------------------------------------------------------------------------------------------


def test_source_takes_folders_when_they_are_there(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    decoded = FrameSource(dataset, "train", 4, 72)
    assert decoded.from_folders == 0 and decoded.layout is None and len(decoded) == 2
    assert "frames of train: 4 per clip, all 2 decoded from the videos" in caplog.text
    layout = make_frames(dataset, 4, 72, 1, 60).layout
    stored = pickle.loads(pickle.dumps(FrameSource(dataset, "train", 4, 72)))  # as for a data loader's workers
    assert stored.from_folders == 2 and f"2 of 2 from {layout.path}" in caplog.text
    assert stored.key() != decoded.key()
    for index in range(2):
        assert stored[index].frames.shape == decoded[index].frames.shape
        assert np.abs(stored[index].frames.astype(int) - decoded[index].frames).mean() < 3
        assert (stored[index].times == decoded[index].times).all() and stored[index].count == 4
    assert FrameSource(dataset, "test", 4, 72)[0].mask.tolist() == [True, True, True, False]
    (dataset.root / "videos" / "a.mp4").unlink()
    assert len(stored[0].frames) == 4  # the videos are not needed any more
    shutil.rmtree(layout.path / "x%2Fb")
    assert "1 of 2 from" in FrameSource(dataset, "train", 4).description
    assert "1 decoded from the videos" in FrameSource(dataset, "train", 4).description


def test_source_chooses_among_sizes(dataset: Dataset) -> None:
    for size in (48, 72, 100):
        make_frames(dataset, 4, size, 1, 60)
    assert [layout.size for layout in layouts(dataset.root)] == [48, 72, 100]
    assert FrameSource(dataset, "train", 4).layout.size == 100
    assert FrameSource(dataset, "train", 4, 60).layout.size == 72
    assert FrameSource(dataset, "train", 4, 60)[0].frames.shape[1:3] == (60, 67)
    assert FrameSource(dataset, "train", 4, 120).layout is None
    assert FrameSource(dataset, "train", 5).layout is None
    segments = FrameSource(dataset, "train", 4, 48, sampling="segment")
    assert segments.layout is None and "(segment)" in segments.description and len(segments[1].frames) == 4


def test_stale_and_damaged_folders_are_named(dataset: Dataset) -> None:
    layout = make_frames(dataset, 4, 72, 1, 60).layout
    assert check_dataset(dataset, workers=1).problems == []
    image = layout.path / "x%2Fb" / "01.jpg"
    image.write_bytes(bytes(image.stat().st_size))
    film(dataset.root / "videos" / "a.mp4", 28)
    source = FrameSource(dataset, "train", 4, 72)
    with pytest.raises(UserError, match=r"x%2Fa: a.mp4 has changed since; .*frames.py .* --frames 4 --size 72"):
        source[0]
    with pytest.raises(UserError, match=r"01.jpg: not an image"):
        source[1]
    problems = list(map(str, check_dataset(dataset, workers=1).problems))
    assert [problem.split(";")[0] for problem in problems] == [
        f"{layout.path}/x%2Fa: a.mp4 has changed since",
        f"{layout.path}/x%2Fb: 01.jpg: not an image",
    ]
    renamed = [{**record, "end": 1.9} if "end" in record else record for record in dataset.records("train")]
    changed = prepared(dataset.root, {"train": renamed})
    with pytest.raises(UserError, match='made with another "end"'):
        FrameSource(changed, "train", 4, 72)[0]


def test_source_names_the_bad_video(dataset: Dataset) -> None:
    cut(dataset.root / "videos" / "a.mp4", 0.5)
    with pytest.raises(UserError, match=r"a.mp4: damaged or truncated.*record 'x/a'.*check.py"):
        FrameSource(dataset, "train", 4)[0]


def test_folder_names_are_safe_and_distinct() -> None:
    ids = ["a/b", "a%2Fb", "a b", ".", "..", ".hidden", "é", "x" * 300, "x" * 301, "-a_c.d~1", "a\\b", "a\nb"]
    names = [folder_name(record_id) for record_id in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert "/" not in name and not name.startswith(".") and len(name.encode()) <= 200 and name.isascii()


# --- Processes of their own ------------------------------------------------------------------------------------------


def _act(job: str) -> str:
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "exit":
        os._exit(3)
    if job == "hang":
        time.sleep(60)
    if job == "error":
        raise OSError(28, "No space left on device")
    return job.upper()


def test_a_crash_or_a_hang_costs_one_job() -> None:
    jobs = ["a", "crash", "b", "hang", "c", "exit", "d"]
    results = dict(isolated(_act, jobs, 2, 5.0))
    assert {job: results[job] for job in "abcd"} == {"a": "A", "b": "B", "c": "C", "d": "D"}
    assert results["crash"] == Lost("crashed its process (SIGSEGV)")
    assert results["exit"] == Lost("ended its process (exit code 3)")
    assert results["hang"] == Lost("took more than 5 s")


def test_an_error_ends_it_all() -> None:
    def jobs() -> Iterator[str]:
        yield "a"
        yield "error"
        while True:
            yield "b"

    with pytest.raises(OSError, match="No space left"):
        for _ in isolated(_act, jobs(), 1, 30.0):
            pass
    assert list(isolated(_act, [], 2, 1.0)) == []
