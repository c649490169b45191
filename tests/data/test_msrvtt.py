"""Official video-text files -> prepared datasets, and the check of their videos."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.films import cut, sound
from vlkit.data.check import check_dataset
from vlkit.data.images import MediaError
from vlkit.data.manifest import Dataset
from vlkit.data.sources import msrvtt, msvd
from vlkit.data.sources.prepare import prepare
from vlkit.data.video.probe import probe
from vlkit.errors import UserError
from vlkit.metrics.video import text_video_metrics

DATA_PREP = Path(__file__).parents[2] / "data_prep"
SPLITS = ("train", "train", "train", "validate", "test", "test", "test")


def script(name: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DATA_PREP / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def film(path: Path, frames: int = 12, codec: str = "libx264") -> Path:
    """A moving square, ``frames`` long at 10 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        rng = np.random.default_rng(0)
        for number in range(frames):
            image = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            image[8:24, number : number + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def data(captions: int = 3) -> dict:
    """A ``MSRVTT_data.json`` of seven clips whose sentences are grouped by number, not by clip."""
    videos = [
        {
            "category": 9,
            "url": "https://example.org",
            "video_id": f"video{i}",
            "start time": 12.5 * i + 3,
            "end time": 12.5 * i + 13.25,
            "split": split,
            "id": i,
        }
        for i, split in enumerate(SPLITS)
    ]
    sentences = [
        {"caption": f"a man, sentence {k} of {i}", "video_id": f"video{i}", "sen_id": 100 - 10 * k + i}
        for k in range(captions)
        for i in reversed(range(7))
    ]
    return {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """MSR-VTT's files in small, and empty clips, one of them .webm."""
    folder = tmp_path / "msrvtt"
    folder.mkdir()
    (folder / "MSRVTT_data.json").write_text(json.dumps(data()))
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\r\nvideo0\r\nvideo3\r\nvideo1\r\nvideo5\r\nvideo2\r\n")
    (folder / "MSRVTT_train.7k.csv").write_text("video_id\nvideo0\nvideo1\nvideo2\nvideo3\n")
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\n"
        'ret0,msr6,video6,"a man, sentence 1 of 6"\n'
        'ret1,msr4,video4,"a man, sentence 2 of 4"\n'
    )
    touch(folder / "videos", *(f"video{i}.{'webm' if i == 4 else 'mp4'}" for i in range(7)))
    return folder


def edited(official: Path, change: Callable[[dict], object]) -> Path:
    """``MSRVTT_data.json`` after a change to its content."""
    content = data()
    change(content)
    path = official / "MSRVTT_data.json"
    path.write_text(json.dumps(content))
    return path


# --- MSR-VTT ---------------------------------------------------------------------------------------------------------


def test_9k_list_and_the_sentences_of_the_test_list(official: Path, tmp_path: Path) -> None:
    words = ("--annotations", official / "MSRVTT_data.json", "--csv", official, "--videos", official / "videos")
    result = script("msrvtt.py", *words, "--output", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert "train" in result.stdout and "15" in result.stdout
    dataset = Dataset.open(tmp_path / "out", "video_retrieval")
    train, test = dataset.records("train"), dataset.records("test")
    assert [record["id"] for record in train] == [f"msrvtt/video{i}" for i in (0, 3, 1, 5, 2)]  # order of the list
    assert train[3] == {
        "id": "msrvtt/video5",
        "video": "video5.mp4",
        "start": 0.0,  # the file is cut already
        "end": 10.25,
        "texts": [f"a man, sentence {k} of 5" for k in (2, 1, 0)],  # by sen_id
    }
    assert [(record["video"], record["texts"]) for record in test] == [
        ("video6.mp4", ["a man, sentence 1 of 6"]),
        ("video4.webm", ["a man, sentence 2 of 4"]),
    ]


def test_7k_list_leaves_official_test_clips_out(official: Path) -> None:
    splits = msrvtt.read(official / "MSRVTT_data.json", split="7k").splits  # lists beside the JSON
    assert [record["video"] for record in splits["train"]] == [f"video{i}.mp4" for i in range(4)]
    assert len(splits["test"]) == 2


def test_full_keeps_the_official_splits_and_all_sentences(official: Path) -> None:
    for path in official.glob("*.csv"):
        path.unlink()  # not needed
    splits = msrvtt.read(official / "MSRVTT_data.json", split="full").splits
    assert {name: len(records) for name, records in splits.items()} == {"train": 3, "val": 1, "test": 3}
    assert {len(record["texts"]) for records in splits.values() for record in records} == {3}


@pytest.mark.parametrize("split", ["9k", "full"])
def test_the_texts_of_a_test_clip_decide_the_protocol(official: Path, tmp_path: Path, split: str) -> None:
    """One sentence a clip in 1k-A, several in the official test: evaluation goes by that."""
    source = msrvtt.read(official / "MSRVTT_data.json", split=split)
    dataset = prepare(source, tmp_path / "out", official / "videos").dataset
    records, entry = dataset.records("test"), dataset.splits["test"]
    owner = [index for index, record in enumerate(records) for _ in record["texts"]]
    assert (entry["texts"] == entry["media"]) == (split == "9k") and len(owner) == entry["texts"]
    rng = np.random.default_rng(0)
    metrics = text_video_metrics(rng.normal(size=(len(records), 4)), rng.normal(size=(len(owner), 4)), owner)
    assert ("v2t_sentence_r1" in metrics) == (split == "full")


def test_mp4_comes_before_webm_and_sub_folders_are_looked_into(official: Path, tmp_path: Path) -> None:
    touch(official / "videos", "video6.webm")
    source = msrvtt.read(official / "MSRVTT_data.json")
    records = prepare(source, tmp_path / "out", official).dataset.records("test")
    assert [record["video"] for record in records] == ["videos/video6.mp4", "videos/video4.webm"]


def test_missing_clips_stop_or_are_left_out(official: Path, tmp_path: Path) -> None:
    (official / "videos" / "video4.webm").unlink()
    words = (
        "--annotations",
        official / "MSRVTT_data.json",
        "--videos",
        official / "videos",
        "--output",
        tmp_path / "out",
    )
    result = script("msrvtt.py", *words)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert "1 of 7 videos" in result.stderr and "video4.mp4" in result.stderr and "--partial" in result.stderr
    result = script("msrvtt.py", *words, "--partial")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out" / "missing.txt").read_text() == "video4.mp4\n"
    assert [r["id"] for r in Dataset.open(tmp_path / "out").records("test")] == ["msrvtt/video6"]


@pytest.mark.parametrize("split", ["9k", "7k", "full"])
def test_counts_of_a_file_as_large_as_the_official_one_are_compared(tmp_path: Path, split: str) -> None:
    """A made-up file with the official counts passes; one training video less is noted."""
    official = {"train": 6513, "validate": 497, "test": 2990}
    names = [name for name, count in official.items() for _ in range(count)]
    videos = [{"video_id": f"video{i}", "split": name} for i, name in enumerate(names)]
    sentences = [{"caption": "x", "video_id": f"video{i % 10000}", "sen_id": i} for i in range(200_000)]
    path = tmp_path / "MSRVTT_data.json"
    path.write_text(json.dumps({"videos": videos, "sentences": sentences}))
    for name, count in (("9k", 9000), ("7k", 7010)):
        ids = "".join(f"video{i}\n" for i in range(count))
        (tmp_path / f"MSRVTT_train.{name}.csv").write_text("video_id\n" + ids)
    rows = "".join(f"ret{i},msr{i},video{i},x\n" for i in range(9000, 10000))
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
    source = msrvtt.read(path, split=split)
    assert source.notes == [] and source.counts == msrvtt.OFFICIAL[split]
    train = source.splits["train"][0]
    assert len(train["texts"]) == 20 and "start" not in train
    shorter = [{**video, "split": "validate"} if i == 0 else video for i, video in enumerate(videos)]
    path.write_text(json.dumps({"videos": shorter, "sentences": sentences}))
    if split == "full":
        notes = msrvtt.read(path, split=split).notes
        assert len(notes) == 2 and "6,512" in notes[0] and "6,513" in notes[0]


def test_test_sentence_that_is_no_caption_is_noted(official: Path) -> None:
    path = official / "MSRVTT_JSFUSION_test.csv"
    path.write_text(path.read_text().replace("sentence 1 of 6", "other words"))
    source = msrvtt.read(official / "MSRVTT_data.json")
    assert source.splits["test"][0]["texts"] == ["a man, other words"]
    assert any("1 videos" in note and "video6" in note for note in source.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("sentences"), r'MSRVTT_data.json: field "sentences" is missing'),
        (lambda d: d["videos"][2].pop("video_id"), r'videos\[2\]: field "video_id" is missing'),
        (
            lambda d: d["videos"][2].update(split="val"),
            r'videos\[2\]: field "split" is "val"; known are train, validate',
        ),
        (lambda d: d["videos"][2].update({"end time": "9"}), r'videos\[2\]: field "end time" is not of type'),
        (lambda d: d["videos"][2].update({"end time": 1}), r'videos\[2\]: field "end time" is 1, not after'),
        (lambda d: d["videos"][2].pop("start time"), r'videos\[2\]: field "start time" is missing'),
        (lambda d: d["videos"][2].update(video_id="video1"), r'videos\[2\]: .*"video1" occurs twice'),
        (lambda d: d["sentences"][5].pop("caption"), r'sentences\[5\]: field "caption" is missing'),
        (lambda d: d["sentences"][5].update(video_id="video77"), r'sentences\[5\]: .*no video "video77"'),
    ],
)
def test_wrong_json_names_record_and_field(official: Path, change: Callable[[dict], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        msrvtt.read(edited(official, change))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("MSRVTT_train.9k.csv", None, r"train.9k.csv: no such file.*--csv"),
        ("MSRVTT_train.9k.csv", "id\nvideo0\n", r'train.9k.csv:1: the header has no column "video_id"'),
        ("MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo77\n", r'train.9k.csv:3: .*no video "video77"'),
        ("MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo0\n", r"train.9k.csv:3: .*twice"),
        ("MSRVTT_train.9k.csv", "video_id\n", r"train.9k.csv: holds no videos"),
        ("MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo6\n", r"1 videos are in MSRVTT_JSFUSION_test.csv too: video6"),
        ("MSRVTT_train.9k.csv", b"video_id\n\xff\n", r"train.9k.csv: not UTF-8"),
        ("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id\nret0,msr4,video4\n", r'no column "sentence"'),
        ("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nr,m,video4,\n", r':2: column "sentence" is empty'),
        (
            "MSRVTT_JSFUSION_test.csv",
            "key,vid_key,video_id,sentence\nr,m,video4,a,b\n",
            r":2: 5 columns where the header has 4",
        ),
    ],
)
def test_wrong_list_names_file_and_line(official: Path, name: str, text: str | bytes | None, message: str) -> None:
    if text is None:
        (official / name).unlink()
    else:
        (official / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        msrvtt.read(official / "MSRVTT_data.json")


# --- MSVD ------------------------------------------------------------------------------------------------------------

IDS = ("-aB_c.d_1_20", "Ef-Gh_3_4", "kL.mN.oP_100_110")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """MSVD's files: a list with blank lines and Windows line ends, ids with dots, clips with several endings."""
    folder = tmp_path / "msvd"
    captions = {video_id: [["a", "man", "rides"], ["one", f"of{i}"]] for i, video_id in enumerate(IDS)}
    touch(folder / "YouTubeClips", f"{IDS[0]}.avi", f"{IDS[1]}.mp4", f"{IDS[2]}.MKV")
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps({**captions, "unlisted_1_2": [["x"]]}, protocol=2))
    for split, video_id in zip(("train", "val", "test"), IDS, strict=True):
        (folder / f"{split}_list.txt").write_text(f"{video_id}\r\n\r\n")
    return folder


def test_msvd_by_script(clips: Path, tmp_path: Path) -> None:
    words = (
        "--annotations",
        clips / "raw-captions.pkl",
        "--videos",
        clips / "YouTubeClips",
        "--output",
        tmp_path / "out",
    )
    result = script("msvd.py", *words)
    assert (result.returncode, result.stderr) == (0, "")
    dataset = Dataset.open(tmp_path / "out", "video_retrieval")
    assert dataset.records("train") == [
        {"id": f"msvd/{IDS[0]}", "video": f"{IDS[0]}.avi", "texts": ["a man rides", "one of0"]}
    ]
    assert dataset.records("val")[0]["video"] == f"{IDS[1]}.mp4"
    assert dataset.records("test")[0]["video"] == f"{IDS[2]}.MKV"


def test_msvd_folder_and_lists_elsewhere(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (clips / "test_list.txt").rename(tmp_path / "lists" / "test_list.txt")
    source = msvd.read(clips, tmp_path / "lists")
    assert list(source.splits) == ["test"]
    assert prepare(source, tmp_path / "out", clips).dataset.records("test")[0]["video"].startswith("YouTubeClips/")


def test_msvd_pickle_of_python_2(clips: Path) -> None:
    """Byte strings of Python 2, UTF-8 and not."""
    text = b"(dp0\nS'%s'\np1\n(lp2\n(lp3\nS'caf\\xc3\\xa9'\np4\naS'b\\xe9d'\np5\naas." % IDS[0].encode()
    (clips / "raw-captions.pkl").write_bytes(text)
    for name in ("val", "test"):
        (clips / f"{name}_list.txt").unlink()
    assert msvd.read(clips).splits["train"][0]["texts"] == ["caf\u00e9 b\ufffdd"]


class _Runs:
    """Pickled, it makes a folder when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_msvd_pickle_that_would_run_code_is_refused(clips: Path, tmp_path: Path) -> None:
    (clips / "raw-captions.pkl").write_bytes(pickle.dumps({IDS[0]: _Runs(tmp_path / "owned")}))
    result = script("msvd.py", "--annotations", clips, "--videos", clips, "--output", tmp_path / "out")
    assert result.returncode == 2 and "mkdir" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "owned").exists() and not (tmp_path / "out").exists()


RELEASED = {
    "AllVideoDescriptions.txt": "# comments\n\n"
    + "".join(f"{i} a man rides\r\n{i} somebody , he\u00e9 rides\n" for i in IDS),
    "video_corpus.csv": "\ufeffVideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
    + "".join(
        f"{i.rsplit('_', 2)[0]},{i.split('_')[-2]},{i.split('_')[-1]},1,{source},5,{language},{text}\n"
        for i in IDS
        for source, language, text in (
            ("clean", "English", "a man rides"),
            ("clean", "German", "ein Mann"),
            ("unverified", "English", '"somebody , he\u00e9 rides"'),
        )
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_msvd_as_it_was_released(clips: Path, name: str) -> None:
    (clips / "raw-captions.pkl").unlink()
    (clips / name).write_text(RELEASED[name], encoding="utf-8", newline="")
    for given in (clips, clips / name):
        source = msvd.read(given)
        assert source.splits["test"] == [
            {"id": f"msvd/{IDS[2]}", "video": f"{IDS[2]}.avi", "texts": ["a man rides", "somebody , he\u00e9 rides"]}
        ]
    assert source.notes == (["3 captions are not English and were left out: German"] if "csv" in name else [])


def test_msvd_files_that_are_none_say_which_are(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of raw-captions\.pkl, AllVideoDescriptions\.txt"):
        msvd.read(tmp_path, clips)
    for name, content, message in (
        ("AllVideoDescriptions.txt", "# x\nvid a man\n", r"Descriptions\.txt:2: expected <video>_<start>_<end>"),
        ("video_corpus.csv", "VideoID,Start\na,1\n", 'corpus.csv:1: the header has no column "End"'),
        ("video_corpus.csv", RELEASED["video_corpus.csv"].split("\n")[0], "video_corpus.csv: holds no captions"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message):
            msvd.read(tmp_path / name, clips)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["a"], "not a dictionary"),
        ({IDS[1]: [["x"]], IDS[2]: [["x"]]}, rf'train_list.txt:1: no captions of "{IDS[0]}"'),
        ({video_id: "a b" for video_id in IDS}, f"raw-captions.pkl: {IDS[0]}: not a list of captions"),
        ({video_id: [["a"], "b c"] for video_id in IDS}, r"\[1\]: not a list of words"),
    ],
)
def test_wrong_msvd_captions_are_named(clips: Path, content: object, message: str) -> None:
    (clips / "raw-captions.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        msvd.read(clips)


def test_msvd_lists_that_are_missing_or_overlap(clips: Path, tmp_path: Path) -> None:
    (clips / "test_list.txt").write_text(f"{IDS[2]}\n{IDS[0]}\n")
    with pytest.raises(UserError, match=r"test_list.txt:2: .* is in train_list.txt:1 too"):
        msvd.read(clips)
    with pytest.raises(UserError, match="--lists"):
        msvd.read(clips, tmp_path)


# --- Videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_probe_counts_frames(tmp_path: Path, name: str, codec: str) -> None:
    info = probe(film(tmp_path / name, 12, codec))
    assert (info.width, info.height, info.frames) == (64, 48, 12)
    assert info.fps == pytest.approx(10, abs=0.1)


def test_probe_of_a_single_frame(tmp_path: Path) -> None:
    assert probe(film(tmp_path / "a.mp4", 1)).frames == 1


def scramble(path: Path) -> Path:
    """Overwrite the second half of the coded frames; the index (at the end) stays."""
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") - 4
    begin = end // 2
    content[begin:end] = bytes(np.random.default_rng(1).integers(0, 255, end - begin, dtype=np.uint8))
    path.write_bytes(content)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "none.mp4", "missing"),
        (lambda folder: folder, "a folder"),
        (lambda folder: written(folder / "a.mp4", b""), "empty file"),
        (lambda folder: written(folder / "a.mp4", b"<html><body>Not found</body></html>" * 20), "not a video"),
        (lambda folder: written(folder / "a.txt", b"words\n" * 50), "not a video"),
        (lambda folder: written(folder / "a.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"), "not a video"),
        (lambda folder: sound(folder / "a.mp4"), "no video stream (only sound)"),
        (lambda folder: cut(film(folder / "a.mp4"), 0.5), "damaged or truncated"),
        (lambda folder: scramble(film(folder / "a.mp4", 40)), "damaged or truncated after"),
        (lambda folder: cut(film(folder / "a.avi", 40, "mpeg4"), 0.5), "truncated"),
    ],
)
def test_probe_says_why_a_file_is_no_use(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    with pytest.raises(MediaError) as error:
        probe(make(tmp_path))
    assert reason in error.value.reason


def test_image_is_not_a_video(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="not a video"):
        probe(tmp_path / "a.png")


def test_check_opens_videos_and_names_the_bad_one(official: Path, tmp_path: Path) -> None:
    for i in range(7):
        film(official / "videos" / f"video{i}.mp4", 3)
    cut(official / "videos" / "video3.mp4", 0.6)
    dataset = prepare(msrvtt.read(official / "MSRVTT_data.json"), tmp_path / "out", official / "videos").dataset
    report = check_dataset(dataset, workers=2)
    assert report.media == 7
    assert [(problem.line, problem.media) for problem in report.problems] == [(2, "video3.mp4")]
    assert "damaged or truncated" in report.problems[0].reason
