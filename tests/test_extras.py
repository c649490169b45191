"""Optional packages: each place that needs one names an extra that exists, and says in one line how to install it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from helpers.scripts import refuse

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for room in ("vlkit", "tasks", "demos", "data_prep", "docs") for path in (ROOT / room).rglob("*.[pm][yd]")
]
NAMED = re.compile(r"needs\(\"(\w+)\"|pip install [\"']?(?:vlkit|-e [\"']?\.)\[([\w,]+)\]")


def test_every_extra_that_is_named_exists() -> None:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    text = "\n".join([*(path.read_text() for path in SOURCES), section])
    found = {name for pair in NAMED.findall(text) for names in pair for name in names.split(",") if name}
    found |= {name for names in re.findall(r"vlkit\[([\w,]+)\]", section) for name in names.split(",")}
    assert {"demo", "scale", "export"} <= found and found <= extras, found - extras


@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [("demos/app.py", "gradio", "demo"), ("tasks/retrieval/serve.py", "fastapi", "serve")],
)
def test_without_its_packages_a_script_names_the_extra(
    script: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] == package or name.startswith("vlkit.serving.api")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.syspath_prepend(ROOT / Path(script).parent)  # as Python does for a script
    words = ("--base", "tiny") if extra == "serve" else ()
    line = refuse(script, *words)
    assert f": {package} is not installed" in line and line.endswith(f"pip install 'vlkit[{extra}]'")
