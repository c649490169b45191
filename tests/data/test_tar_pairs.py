"""WebDataset tars as ``--data.root``: captions and splits, exact resume, the tap cache, damage."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.scripts import call, refuse
from helpers.shards import image_bytes, make_tars
from vlkit.data.images import read_image
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.sources.shards import are_tars, read
from vlkit.data.sources.tar_index import Fields, read_tar
from vlkit.engine.training import Training
from vlkit.errors import UserError
from vlkit.tasks.retrieval.task import TASK

TRAIN, PREPARE, CHECK = "tasks/retrieval/train.py", "data_prep/shards.py", "data_prep/check.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_captions_places_and_splits(tmp_path):
    described = json.dumps({"caption": "from json", "alt": ["x", "y"], "part": "dev"}).encode()
    write_tar(
        tmp_path / "s" / "train-0.tar",
        {
            "a/1.jpg": image_bytes(1, "JPEG"),
            "a/1.txt": b"one\n\n two \n",
            "a/1.json": described,
            "a/2.json": described,  # before its image
            "a/2.png": image_bytes(2),
            "3.png": image_bytes(3),  # without captions
            "4.txt": b"without an image",
        },
    )
    write_tar(tmp_path / "s" / "validation-0.tar", {"1.png": image_bytes(5), "1.txt": b"val"})
    root = str(tmp_path / "s" / "*.tar")
    source, top = read(root)
    assert top == tmp_path / "s" and {split: len(found) for split, found in source.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    assert [record["texts"] for record in source.splits["train"]] == [["one", "two"], ["from json"]]
    assert source.without_text == ["s/train-0/3"] and "1 texts have no image" in source.notes[0]
    dataset = TASK.dataset(Path(root))
    (second,) = [record for record in dataset.records("train") if record["id"] == "s/train-0/a/2"]
    assert read_image(dataset, second).size == (24, 22)
    fields, _ = read(root, "texts=alt,texts=caption,split=part")
    assert [record["texts"] for record in fields.splits["val"]][:1] == [["x", "y", "from json"]]
    assert are_tars(tmp_path / "s") and are_tars(Path("none/{00..10}.tar")) and not are_tars(dataset.root)


def test_a_damaged_tar_or_member_is_named_and_may_be_left_out(tmp_path):
    tars = make_tars(tmp_path / "s", shards=3, each=6)
    content = tars[1].read_bytes()
    tars[1].write_bytes(content[: len(content) // 2])
    write_tar(tars[2], {"a.png": image_bytes(1), "a.json": b"{", "b.png": b"no image", "b.txt": b"b"})
    said = refuse(TRAIN, "--data.root", tmp_path / "s", "--output", tmp_path / "run", "--device", "cpu")
    assert "2 members cannot be used" in said and "001.tar: " in said and "--partial" in said
    out = ("--tars", tmp_path / "s", "--output", tmp_path / "out", "--val", 0, "--test", 0)
    call(PREPARE, *out, "--partial")
    wrong = (tmp_path / "out" / "wrong.txt").read_text()
    assert "001.tar: damaged or incomplete after member n0000" in wrong
    assert "002.tar: member a.json: not valid JSON" in wrong
    records = Dataset.open(tmp_path / "out").records("train")
    whole = [record for record in records if "002" not in record["id"]]
    assert 6 < len(whole) < 12  # those before the damage
    assert "002.tar/b.png: not an image" in capture_check(tmp_path / "out", tmp_path / "report.json")
    write_tar(tars[0], {"x.png": image_bytes(1)})
    with pytest.raises(UserError, match=r"000.tar/n000000.png: 000.tar has changed: .*prepare it again"):
        read_image(Dataset.open(tmp_path / "out"), records[0])


def capture_check(folder: Path, report: Path) -> str:
    with pytest.raises(UserError, match="1 problems"):
        call(CHECK, folder, "--json", report)
    return "\n".join(
        f"{problem['media']}: {problem['reason']}" for problem in json.loads(report.read_text())["problems"]
    )


def test_an_index_is_read_once_per_state_of_a_tar(tmp_path, monkeypatch):
    tars = make_tars(tmp_path / "s", shards=2, each=3)
    read(tmp_path / "s")
    seen = []
    monkeypatch.setattr(
        "vlkit.data.sources.tar_index.read_tar", lambda path, fields: seen.append(path) or read_tar(path, fields)
    )
    again, _ = read(tmp_path / "s")
    assert not seen and sum(map(len, again.splits.values())) == 6
    write_tar(tars[1], {"x.png": image_bytes(1), "x.txt": b"x"})
    assert sum(map(len, read(tmp_path / "s")[0].splits.values())) == 4 and seen == [tars[1]]
    assert [pair.image for pair in read_tar(tars[1], Fields()).pairs] == ["x.png"]


def test_training_from_tars_equals_files_is_resumed_exactly_and_feeds_the_cache(tmp_path, monkeypatch):
    """The same images as files give the same weights, so order and randomness are those of every other dataset."""
    for number in range(4):
        names = {f"{number}{n}.png": image_bytes(10 * number + n) for n in range(8)}
        texts = {f"{number}{n}.txt": f"thing {n}\nimage {number} {n}".encode() for n in range(8)}
        write_tar(tmp_path / "s" / f"{number:03d}.tar", names | texts)
    root, held = tmp_path / "s" / "{000..003}.tar", ("--data.hold_out", 0.2)
    quick = (TRAIN, "--device", "cpu", "--epochs", 1, "--batch_size", 8, "--before", "false")
    train = (*quick, "--data.root", root, *held)
    call(*train, "--output", tmp_path / "whole", "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "log_step", stop_after_one)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(*train, "--output", tmp_path / "parts")
    call(*train, "--output", tmp_path / "parts", "--resume")
    splits = {}
    dataset = TASK.dataset(root, "", 0.2)
    for split in dataset.splits:
        splits[split] = [{**record, "image": record["image"].replace(".tar", "")} for record in dataset.records(split)]
        for record in splits[split]:
            record.pop("tar")
    assert splits.keys() == {"train", "val", "test"}
    for tar in (tmp_path / "s").glob("*.tar"):
        with tarfile.open(tar) as archive:
            archive.extractall(tmp_path / "files" / tar.stem, filter="data")
    files = {"splits": splits, "media_root": tmp_path / "files", "source": None}
    write_dataset(tmp_path / "files", name=dataset.name, task="retrieval", **files)
    call(*quick, "--data.root", tmp_path / "files", "--output", tmp_path / "plain")
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts") == weights(tmp_path / "plain")
    call(*train, "--output", tmp_path / "cached", "--cache", tmp_path / "taps")
    assert list((tmp_path / "taps").rglob("*"))
    metrics = tmp_path / "metrics.json"
    shown = ("--data.root", root, *held, "--split", "test", "--json", metrics)
    call("tasks/retrieval/evaluate.py", "--model", tmp_path / "whole", *shown)
    after = json.loads((tmp_path / "whole" / "metrics.json").read_text())["after"]
    assert json.loads(metrics.read_text())["rsum"] == pytest.approx(after["rsum"])


def stop_after_one(self: Training, numbers: dict[str, float]) -> None:
    self.asked_to_stop = True


def weights(run: Path) -> dict[str, bytes]:
    (file,) = run.glob("*adapter*.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
