"""The ``vlkit`` command: every script, from a checkout or from the wheel.

    vlkit train retrieval --epochs 4      # = python tasks/retrieval/train.py --epochs 4
    vlkit prepare coco --help             # = python data_prep/coco.py --help

A script runs in this process's place, so its output, exit code and signals are its own. What can be run is read from
the folders of scripts: a new task or data script needs no entry here.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vlkit
from vlkit.errors import UserError, needs


@dataclass(frozen=True)
class Command:
    """A word after ``vlkit``.

    Attributes:
        help: one sentence.
        what: name of the word that follows; empty = none follows.
        scripts: that word (or "") -> the script.
        default: the word that may be left out.
        module: a module that is run instead of a script.
    """

    help: str
    what: str
    scripts: dict[str, Path]
    default: str = ""
    module: str = ""


def scripts_folder() -> Path:
    """The folder that holds ``tasks``, ``demos`` and ``data_prep``: in the wheel, or the checkout.

    Raises:
        SystemExit: neither is there; code 2.
    """
    package = Path(vlkit.__file__).parent
    for folder in (package / "scripts", package.parent):
        if (folder / "tasks" / "compare.py").is_file():
            return folder
    print(f"error: {package}: the scripts are missing beside the package; install vlkit again", file=sys.stderr)
    raise SystemExit(2)


def commands(folder: Path) -> dict[str, Command]:
    """Every command that the scripts in ``folder`` give."""

    def by_task(name: str) -> dict[str, Path]:
        return {path.parent.name: path for path in sorted((folder / "tasks").glob(f"*/{name}.py"))}

    def alone(*place: str) -> dict[str, Path]:
        return {"": folder.joinpath(*place)}

    prepare = {path.stem: path for path in sorted((folder / "data_prep").glob("*.py")) if path.stem[0] != "_"}
    index = {**by_task("index"), "export": folder / "tasks" / "index_export.py"}
    found = {
        "train": Command("adapt a base to a task", "task", by_task("train")),
        "evaluate": Command("evaluate an adapter, or the base alone", "task", by_task("evaluate")),
        "predict": Command("write an adapter's predictions to a file", "task", by_task("predict")),
        "prepare": Command("make a dataset from official files or your own folder", "dataset", prepare),
        "index": Command("index a folder of images or videos, or export an index", "task", index, "retrieval"),
        "search": Command("search an index by text or image", "task", by_task("search"), "retrieval"),
        "embed": Command("embed folders or shards of images", "task", by_task("embed"), "retrieval"),
        "compare": Command("train several methods and compare accuracy and memory", "", alone("tasks", "compare.py")),
        "memory": Command("measure or predict the memory of a training step", "", alone("tasks", "memory.py")),
        "export": Command("write an adapter in the format of another library", "", alone("tasks", "export.py")),
        "demo": Command("serve the web demo", "", alone("demos", "app.py")),
        "cache": Command("list and remove cached taps", "", {"": Path()}, module="vlkit.tap_cache"),
        "bases": Command("list the bases and whether vlkit can stage them", "", {"": Path()}, module="vlkit.encoders"),
    }
    for name in sorted({path.stem for path in (folder / "tasks").glob("*/*.py")} - set(found)):
        scripts = by_task(name)
        found[name] = Command(_first_line(next(iter(scripts.values()))), "task", scripts, next(iter(scripts)))
    return {name: command for name, command in found.items() if command.scripts}


def _first_line(script: Path) -> str:
    """The first line of a script's docstring, as a help text."""
    lines = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem).splitlines()
    return lines[0].rstrip(".:").replace("%", "%%")


def make_parser(found: dict[str, Command]) -> argparse.ArgumentParser:
    """The parser of the words before a script's own flags."""
    parser = argparse.ArgumentParser("vlkit", description="Adapt CLIP and T5 to images, videos and questions.")
    parser.add_argument("--version", action="version", version=vlkit.__version__)
    _add_completion(parser)
    words = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in found.items():
        sub = words.add_parser(name, help=command.help, description=command.help, add_help=False)
        if command.what:
            sub.add_argument(command.what, choices=list(command.scripts))
    return parser


def script_of(found: dict[str, Command], words: Sequence[str]) -> tuple[Path | str, list[str]]:
    """The script (or the name of a module) that ``words`` ask for, and the words for it.

    Raises:
        SystemExit: the words name no command (code 2), or ask for help (code 0).
    """
    parser = make_parser(found)
    command = found.get(words[0]) if words else None
    if command is None:
        parser.parse_args(list(words) or ["--help"])
        raise AssertionError("argparse leaves")
    rest = list(words[1:])
    if not command.what:
        return command.module or command.scripts[""], rest
    if rest and rest[0] in command.scripts:
        return command.scripts[rest[0]], rest[1:]
    if command.default and (not rest or rest[0].startswith("-")):
        return command.scripts[command.default], rest
    names = ", ".join(command.scripts)
    if rest[:1] in ([], ["--help"], ["-h"]):
        print(f"usage: vlkit {words[0]} {command.what.upper()} [flags]\n\n{command.help}\n\n{command.what}: {names}")
        raise SystemExit(0 if rest else 2)
    print(f"error: vlkit {words[0]} {rest[0]}: no such {command.what}; choose from {names}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script in this process's place.

    Raises:
        SystemExit: with the script's exit code where a process cannot be replaced (Windows).
    """
    script, words = script_of(commands(scripts_folder()), sys.argv[1:] if argv is None else argv)
    place = ["-m", script] if isinstance(script, str) else [str(script)]
    line = [sys.executable, *place, *words]
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(line[0], line)
    raise SystemExit(subprocess.run(line).returncode)


def _add_completion(parser: argparse.ArgumentParser) -> None:
    """``--print_completion bash|zsh|tcsh``; without shtab it names the extra."""
    flag, about = "--print_completion", "print a script for the completion of your shell"
    try:
        with needs("completion", flag):
            import shtab  # pyright: ignore[reportMissingImports]
    except UserError as error:
        parser.add_argument(flag, action=_Missing, why=str(error), help=about)
    else:
        shtab.add_argument_to(parser, [flag], help=about)


class _Missing(argparse.Action):
    """A flag whose package is not installed."""

    def __init__(self, *given: Any, why: str, **named: Any) -> None:
        super().__init__(*given, **named)
        self._why = why

    def __call__(self, *_: Any) -> None:
        print(f"error: {self._why}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
