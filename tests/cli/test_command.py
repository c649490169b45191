"""The vlkit command: which script a line of words runs, and the wheel that carries the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from vlkit.cli.command import commands, script_of, scripts_folder
from vlkit.data.manifest import write_dataset
from vlkit.data.records import Record
from vlkit.tasks.registry import TASKS

ROOT = Path(__file__).parents[2]
FOUND = commands(ROOT)


@pytest.mark.parametrize(
    ("line", "script", "rest"),
    [
        ("train retrieval --epochs 2", "tasks/retrieval/train.py", "--epochs 2"),
        ("evaluate vqa --model a b", "tasks/vqa/evaluate.py", "--model a b"),
        ("predict grounding", "tasks/grounding/predict.py", ""),
        ("index --images x", "tasks/retrieval/index.py", "--images x"),
        ("index video_retrieval --videos x", "tasks/video_retrieval/index.py", "--videos x"),
        ("search", "tasks/retrieval/search.py", ""),
        ("prepare coco --help", "data_prep/coco.py", "--help"),
        ("compare --task vqa", "tasks/compare.py", "--task vqa"),
        ("tokenizer --help", "tasks/pretrain/tokenizer.py", "--help"),
        ("black_box classification --epochs 1", "tasks/classification/black_box.py", "--epochs 1"),
        ("memory", "tasks/memory.py", ""),
        ("embed --input x", "tasks/retrieval/embed.py", "--input x"),
        ("serve --port 1", "tasks/retrieval/serve.py", "--port 1"),
        ("demo --port 1", "demos/app.py", "--port 1"),
    ],
)
def test_words_name_a_script(line: str, script: str, rest: str) -> None:
    assert script_of(FOUND, line.split()) == (ROOT / script, rest.split())


def test_every_task_and_data_script_is_reached() -> None:
    assert set(TASKS) <= set(FOUND["train"].scripts) and set(TASKS) <= set(FOUND["evaluate"].scripts)
    assert set(FOUND["prepare"].scripts) == {path.stem for path in (ROOT / "data_prep").glob("*.py")}
    assert script_of(FOUND, ["bases", "--json", "x"]) == ("vlkit.encoders", ["--json", "x"])
    assert script_of(FOUND, ["cache", "--max_size", "1GB"]) == ("vlkit.tap_cache", ["--max_size", "1GB"])


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("", 0, "COMMAND"),
        ("train", 2, "task: "),
        ("train --help", 0, "grounding"),
        ("train chess", 2, "vlkit train chess: no such task; choose from"),
        ("fly", 2, "invalid choice: 'fly'"),
        ("--version", 0, "0."),
    ],
)
def test_other_words_are_explained(line: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        script_of(FOUND, line.split())
    shown = capsys.readouterr()
    assert left.value.code == code and says in shown.out + shown.err


def test_completion_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as left:
        script_of(FOUND, ["--print_completion", "bash"])
    assert left.value.code == 2 and "pip install 'vlkit[completion]'" in capsys.readouterr().err


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "vlkit.cli.command", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=os.environ | environment)


@pytest.mark.slow
def test_exit_code_and_output_are_those_of_the_script(tmp_path: Path) -> None:
    done = run("evaluate", "retrieval", "--model", tmp_path / "none")
    assert done.returncode == 2 and str(tmp_path / "none") in done.stderr and not done.stdout


@pytest.mark.slow
def test_a_wheel_carries_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from a copy without the weights; used from a folder with a space in its name, without the checkout."""
    copy, place = tmp_path / "copy", tmp_path / "a place"
    for name in ("vlkit", "tasks", "demos", "data_prep"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    line = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(line, cwd=copy, check=True, capture_output=True, timeout=120)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(place)
    scripts = place / "vlkit" / "scripts"
    for folder in ("tasks", "demos", "data_prep"):
        there = {path.relative_to(scripts) for path in (scripts / folder).rglob("*.py")}
        assert there == {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
    monkeypatch.chdir(tmp_path)
    done = run("train", "retrieval", "--print_config", "--lr", "0.5", PYTHONPATH=str(place))
    assert done.returncode == 0 and "lr: 0.5" in done.stdout
    shown = run(
        "prepare", "coco", "--annotations", "none.json", "--images", ".", "--output", "o", PYTHONPATH=str(place)
    )
    assert shown.returncode == 2 and "none.json" in shown.stderr


@pytest.mark.slow
def test_an_installed_wheel_trains_and_searches_without_a_checkout_and_a_home(tmp_path: Path) -> None:
    """From a folder with a space in its name, with a home that cannot be written."""
    copy, site, place = tmp_path / "copy", tmp_path / "a place" / "site", tmp_path / "my photos"
    for name in ("vlkit", "tasks", "demos", "data_prep"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    line = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(line, cwd=copy, check=True, capture_output=True, timeout=120)
    wheel = next(tmp_path.glob("*.whl"))
    # The dependencies are those of this interpreter; PYTHONPATH comes before an editable installation of the checkout.
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    shutil.rmtree(copy)
    # Every module is there: none is taken from an editable installation instead.
    modules = {path.relative_to(ROOT) for path in (ROOT / "vlkit").rglob("*.py")}
    assert modules <= {path.relative_to(site) for path in (site / "vlkit").rglob("*.py")}
    (place / "images").mkdir(parents=True)
    splits: dict[str, list[Record]] = {}
    for number, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 2):
        Image.new("RGB", (64, 64), (255 * (number % 2), 40, 40 * number)).save(place / "images" / f"{number}.png")
        record = {"id": str(number), "image": f"{number}.png", "texts": [f"a square of kind {number}"]}
        splits.setdefault(split, []).append(record)
    data, media = place / "data" / "mine", place / "images"
    write_dataset(data, name="mine", task="retrieval", splits=splits, media_root=media, source="test")
    (tmp_path / "no home").touch()
    hidden = {name: "" for name in ("VLKIT_CACHE", "XDG_CACHE_HOME")}
    environment = os.environ | hidden | {"HOME": str(tmp_path / "no home"), "PYTHONPATH": str(site)}

    def vlkit(*words: object) -> str:
        call = [str(site / "bin" / "vlkit"), *map(str, words)]
        done = subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "train" in vlkit("--help")
    quick = ("--epochs", 1, "--batch_size", 4, "--device", "cpu", "--output", "runs/my run")
    assert "adapter: runs/my run" in vlkit("train", "retrieval", "--data.root", "data/mine", *quick)
    assert "8 images (8 new" in vlkit("index", "--model", "runs/my run", "--images", "images", "--index", "an idx")
    assert "7.png" in vlkit("search", "--index", "an idx", "--text", "a square - red", "--k", 8)


def test_a_package_without_scripts_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlkit.__file__", str(tmp_path / "vlkit" / "__init__.py"))
    with pytest.raises(SystemExit, match="2"):
        scripts_folder()
    assert "the scripts are missing beside the package" in capsys.readouterr().err
