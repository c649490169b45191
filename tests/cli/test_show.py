"""What scripts show: text of users as it is, in any encoding, never folded in a pipe, and by one module alone."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scripts import ROOT
from vlkit.cli.show import Console, Progress, Table, one_line, track, visible

RUDE = [
    "[red]",
    "[/b]",
    "[link=x]",
    ":cat:",
    ":+1:",
    "a [copy].jpg",
    "\\[x]",
    "[",
    "{x}",
    "https://a.b/1.5",
    "1e3",
    "'q'",
]


class Stream(io.StringIO):
    """A file of an encoding; io.StringIO has none."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:
        return self._encoding


def printed(*objects: object, encoding: str = "utf-8", **options) -> str:
    file = Stream(encoding)
    Console(file=file).print(*objects, **options)
    return file.getvalue()


@pytest.mark.parametrize("text", RUDE)
def test_text_is_no_markup(text):
    assert printed(text) == f"{text}\n"
    table = Table("score", f"head {text}", title=f"title {text}")
    table.add_column(f"more {text}")
    table.add_row(text, f"cell {text}", text)
    lines = printed(table).splitlines()
    assert lines[0] == f"title {text}"
    assert f" head {text} " in lines[2] and f" more {text} " in lines[2] and f" cell {text} " in lines[4]


@pytest.mark.parametrize("text", RUDE)
def test_text_of_a_progress_bar_is_no_markup(text):
    file = Stream()
    console = Console(file=file, force_terminal=True, color_system=None, width=120)
    assert list(track(range(3), text, console=console)) == [0, 1, 2]
    assert text in file.getvalue()
    with Progress(console=console) as bar:
        bar.add_task(f"second {text}")
    with console.status(f"third {text}"):
        pass
    assert f"second {text}" in file.getvalue() and f"third {text}" in file.getvalue()


def test_a_file_gets_no_progress_bar():
    file = Stream()
    assert list(track(range(3), "x", console=Console(file=file))) == [0, 1, 2]
    assert file.getvalue() == ""


def test_nothing_is_folded_in_a_pipe_and_nothing_is_cut_off_on_a_terminal():
    path = "/".join(["a long path [1]"] * 40)
    table = Table("score", "image", title=path)
    table.add_row("0.5", path)
    in_pipe = printed(table)
    assert in_pipe.splitlines()[0] == path and in_pipe.count(path) == 2
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system=None, width=60).print(table)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60 and "…" not in file.getvalue()
    cells = "".join(line.split("│")[2].strip() for line in lines if line.startswith("│"))
    assert cells.replace(" ", "") == path.replace(" ", "")


def test_a_pipe_is_not_folded_to_the_width_of_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert printed("x" * 300) == "x" * 300 + "\n"


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("caf\udce9.jpg", "utf-8", "caf\\xe9.jpg"),
        ("half \ud83d", "utf-8", "half \\ud83d"),
        ("\x1b[31m\x07\r", "utf-8", "\\x1b[31m\\x07\\x0d"),
        ("a\nb c", "utf-8", "a\nb c"),
        ("café → … 猫", "ascii", "caf\\xe9 -> ... \\u732b"),
        ("café → …", "latin-1", "café -> ..."),
    ],
)
def test_every_text_can_be_shown(text, encoding, shown):
    assert visible(text, encoding) == shown
    assert printed(text, encoding=encoding) == f"{shown}\n"


def test_a_table_in_ascii():
    table = Table("…", title="→ é")
    table.add_row("±")
    text = printed(table, encoding="ascii")
    assert text.isascii() and text.startswith("-> \\xe9\n") and "| +- " in text
    rows = text.splitlines()[1:]
    assert len({len(row) for row in rows}) == 1


def test_one_line_keeps_blanks_of_names():
    assert one_line(" a  b.jpg:\n   bad\n") == "a  b.jpg: bad"


SCRIPT = """
import logging, os, sys
from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from dataclasses import dataclass
from vlkit.errors import UserError

@dataclass
class Config:
    "Show [things] → all."

    text: str = "x"
    "What … to show."

def main(config):
    print("→ …", config.text)
    logging.info("… log %s", config.text)
    table = Table("№", title=config.text)
    table.add_row("… " + config.text)
    Console().print(table)
    raise UserError("… " + config.text)

run(main, Config)
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
    ],
)
def test_streams_of_other_encodings(environment, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    text = b"caf\xe9 [b] \xe7\x8c\xab"
    done = subprocess.run(
        [os.fsencode(sys.executable), os.fsencode(script), b"--text", text],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
    )
    said, errors = done.stdout, done.stderr
    assert done.returncode == 2 and b"Traceback" not in errors, errors
    assert said.count(b"caf\\xe9 [b]") == 3 and errors.count(b"caf\\xe9 [b]") == 2
    helped = subprocess.run([sys.executable, script, "--help"], capture_output=True, env=os.environ | environment)
    assert helped.returncode == 0 and b"Show [things]" in helped.stdout


def test_log_lines_are_visible(capsys):
    from vlkit.cli.config import _Visible

    record = logging.LogRecord("x", logging.INFO, "", 0, "left out: %s", ("[b] caf\udce9\x1b[1m",), None)
    assert _Visible("%(message)s").format(record) == "left out: [b] caf\\xe9\\x1b[1m"


def product_files() -> list[Path]:
    rooms = ("vlkit", "tasks", "demos", "data_prep", "benchmarks")
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def test_one_module_knows_rich():
    """Rich parses markup wherever it is not told otherwise, so nothing may go to it but through vlkit.cli.show."""
    found = []
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "rich" for name in names):
                found.append(path.relative_to(ROOT).as_posix())
    assert set(found) == {"vlkit/cli/show.py"}


def test_files_are_opened_with_a_stated_encoding():
    """The locale's encoding may be ASCII or Latin-1."""
    found = []
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            binary = any("b" in text for text in texts[-1:]) if name == "open" else False
            is_file = name in ("read_text", "write_text") or (name == "open" and isinstance(node.func, ast.Name))
            stated = any(keyword.arg == "encoding" for keyword in node.keywords)
            own = isinstance(node.func, ast.Name) and name != "open"  # those of vlkit.files use UTF-8
            if is_file and not binary and not stated and not own:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
