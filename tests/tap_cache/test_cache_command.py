"""``vlkit cache``: what it lists, which keys it removes, and that it removes none that a run uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vlkit.cli.config import parse
from vlkit.errors import UserError
from vlkit.tap_cache.__main__ import Config, main
from vlkit.tap_cache.keys import DAY, StoredKey, choose, remove, stored_keys
from vlkit.tap_cache.store import TapStore, digest
from vlkit.tap_cache.usage import Uses, add_uses, read_uses, take

NOW = 1_800_000_000
ABOUT = {"base": {"name": "ViT-B-32", "weights": "/models/openai"}, "layers": [0, 1, 2, 5, 7, 8], "dtype": "bf16"}


def filled(root: Path, name: str, rows: int, **key) -> TapStore:
    """A store with rows of 80 bytes."""
    store = TapStore(root, name, {**ABOUT, **key}, 40)
    data = torch.zeros(rows, 2, 40, dtype=torch.uint8)
    store.write([digest(i) for i in range(rows)], data, torch.full((rows,), 2), torch.zeros(rows, dtype=torch.int64))
    return store


def aged(root: Path, days: dict[str, float]) -> None:
    """Let the only folder that begins with each name be last used so many days ago."""
    for name, count in days.items():
        (folder,) = root.glob(f"{name}-*")
        for file in folder.iterdir():
            os.utime(file, (time.time() - count * DAY,) * 2)


def key_of(name: str, size: int, days: float) -> StoredKey:
    return StoredKey(Path("taps") / name, {}, 1, size, NOW - days * DAY, Uses())


KEYS = [key_of("image-a1", 30, 0), key_of("text-b1", 10, 5), key_of("image-a2", 40, 20), key_of("text-b2", 20, 90)]


def test_list(tmp_path: Path):
    store = filled(tmp_path, "image", 5)
    store.write([digest(0)], torch.zeros(1, 2, 40, dtype=torch.uint8), torch.tensor([2]), torch.tensor([0]))  # twice
    add_uses(store.folder, Uses(30, 10))
    add_uses(store.folder, Uses(10, 0))
    (key,) = stored_keys(tmp_path)
    assert (key.base, key.taps, key.rows, key.uses) == ("ViT-B-32:openai", "0-2,5,7-8 bf16", 5, Uses(40, 10))
    assert key.uses.hit_rate == 0.75
    assert key.size == sum(file.stat().st_size for file in store.folder.iterdir()) > 6 * 80


@pytest.mark.parametrize(
    "wanted, gone",
    [
        ({}, ""),
        ({"names": ["text-b1"]}, "text-b1"),
        ({"names": ["image-a2", "text-b2"]}, "image-a2 text-b2"),
        ({"names": ["all"]}, "image-a1 text-b1 image-a2 text-b2"),
        ({"unused_days": 10}, "image-a2 text-b2"),
        ({"unused_days": 0}, "text-b1 image-a2 text-b2"),
        ({"most_bytes": 100}, ""),
        ({"most_bytes": 99}, "text-b2"),
        ({"most_bytes": 40}, "image-a2 text-b2"),
        ({"most_bytes": 0}, "image-a1 text-b1 image-a2 text-b2"),
        ({"names": ["image-a1"], "most_bytes": 50}, "image-a1 text-b2"),
        ({"unused_days": 50, "most_bytes": 79}, "image-a2 text-b2"),
    ],
)
def test_choice(wanted: dict, gone: str):
    assert [key.name for key in choose(KEYS, now=NOW, **wanted)] == gone.split()


@pytest.mark.parametrize("name, what", [("image-a", "2 keys begin"), ("clip", "no key"), ("", "4 keys begin")])
def test_names_that_fit_no_key_or_several(name: str, what: str):
    with pytest.raises(UserError, match=f"--remove {name}: {what}"):
        choose(KEYS, names=[name])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root, listed = tmp_path / "taps", tmp_path / "left.json"
    for name, rows in (("image", 50), ("text", 20), ("clip", 10)):
        filled(root, name, rows)
    aged(root, {"image": 1, "text": 40, "clip": 9})
    main(parse(Config, ["--folder", str(root)]))
    said = capsys.readouterr().out
    assert said.index("image-") < said.index("clip-") < said.index("text-") and "3 keys" in said
    main(parse(Config, ["--folder", str(root), "--max_size", "0.001M", "--dry_run", "true"]))
    assert "would remove 3 keys" in capsys.readouterr().out and len(stored_keys(root)) == 3
    text = next(root.glob("text-*")).name
    main(parse(Config, ["--folder", str(root), "--remove", text, "clip", "--json", str(listed)]))
    assert "removed 2 keys" in capsys.readouterr().out
    (left,) = json.loads(listed.read_text())
    assert left["name"].startswith("image-") and left["rows"] == 50 and left["hit_rate"] is None
    assert [path.name for path in root.iterdir()] == [left["name"]]
    main(parse(Config, ["--folder", str(root), "--unused_days", "0"]))
    main(parse(Config, ["--folder", str(root)]))
    assert "0 keys" in capsys.readouterr().out and not list(root.iterdir())


def test_key_that_a_run_uses_stays(tmp_path: Path):
    """The mark goes with the process, so a killed run blocks nothing."""
    code = "import sys; from pathlib import Path; from vlkit.tap_cache.store import TapStore\n"
    code += (
        f"store = TapStore(Path({str(tmp_path)!r}), 'text', {ABOUT!r}, 40); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout and run.stdin and run.stdout.readline() == "open\n"
        (key,) = stored_keys(tmp_path)
        assert remove([key]) == ([], [key]) and key.folder.exists()
        run.kill()
        run.wait()
    assert remove([key]) == ([key], []) and not key.folder.exists()


def test_store_opened_after_a_removal_begins_anew(tmp_path: Path):
    store = filled(tmp_path, "image", 3)
    folder = store.folder
    del store
    remove(stored_keys(tmp_path))
    assert not folder.exists()
    assert len(filled(tmp_path, "image", 4)) == 4 and len(stored_keys(tmp_path)) == 1


def test_store_opened_during_a_removal_waits_and_begins_anew(tmp_path: Path):
    filled(tmp_path, "image", 3)
    (key,) = stored_keys(tmp_path)
    mark = take(key.folder)
    assert mark
    with ThreadPoolExecutor() as pool:
        opened = pool.submit(filled, tmp_path, "image", 4)
        time.sleep(0.3)
        assert not opened.done()
        for file in key.folder.iterdir():
            file.unlink()
        key.folder.rmdir()
        mark.close()
        assert len(opened.result(timeout=20)) == 4 and stored_keys(tmp_path)[0].rows == 4


def test_other_files_in_the_folder_stay(tmp_path: Path):
    folder = filled(tmp_path, "image", 3).folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{folder.name}: cannot remove"):
        remove(stored_keys(tmp_path))
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_broken_files_are_listed_and_removed(tmp_path: Path):
    folder = filled(tmp_path, "image", 3).folder
    (folder / "key.json").write_text("{")
    (folder / "uses.jsonl").write_text('{"read": 4, "computed": 1}\n{"read": "many"}\n[]\n{"read": 6, "comp')
    assert read_uses(folder) == Uses(4, 1)
    (key,) = stored_keys(tmp_path)
    assert (key.base, key.taps, key.rows) == ("?", "none ?", 3)
    assert remove([key]) == ([key], []) and not folder.exists()


def test_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"--folder .*holds no tap cache"):
        main(Config(folder=tmp_path, remove=["all"]))
    assert (tmp_path / "photo.jpg").exists()


def test_cache_that_is_not_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(Config(folder=tmp_path / "none"))
    assert "0 keys" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--unused_days", "-1"], ["--unused_days", "nan"], ["--max_size", "20"]])
def test_wrong_flags(words: list[str], tmp_path: Path):
    with pytest.raises(UserError, match=words[0]):
        main(parse(Config, ["--folder", str(tmp_path), *words]))
