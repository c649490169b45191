"""What users wrote is text in the demo, too: names, queries, answers and captions are no HTML and no Markdown."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace

import pytest

from helpers.scripts import ROOT
from vlkit.data.images import MediaError

RUDE = '<b>[x]</b> _a_ **b** & "q" caf\udce9 \x1b[1m'
SHOWN = "&lt;b&gt;[x]&lt;/b&gt; _a_ **b** &amp; &quot;q&quot; caf\\xe9 \\x1b[1m"


@pytest.fixture(scope="module")
def tabs():
    sys.path.insert(0, str(ROOT / "demos"))
    try:
        from tabs import common, page

        yield SimpleNamespace(common=common, page=page)
    finally:
        sys.path.remove(str(ROOT / "demos"))


def test_names_are_shown_as_text(tabs):
    assert tabs.common.as_html(RUDE) == SHOWN
    assert SHOWN in tabs.common.bars([(RUDE, 0.5)], tabs.common.percent, label=RUDE)
    library = SimpleNamespace(error=RUDE, left_out=[], finished=True)
    assert SHOWN in tabs.common.status_of(library, "images")
    library = SimpleNamespace(error=None, left_out=[RUDE], finished=True, __len__=lambda: 1)
    about = {"bases": [RUDE], "adapters": {"vqa": [RUDE]}, "device": "cpu", "precision": "32-true"}
    assert tabs.page.about_line(about).count(SHOWN) == 2


def test_errors_are_shown_as_text(tabs):
    def fail() -> None:
        raise MediaError(RUDE, "missing")

    import gradio as gr

    with pytest.raises(gr.Error) as caught:
        tabs.common.told(fail)()
    assert caught.value.message == SHOWN.replace("&quot;", '"') + ": missing"


def test_markdown_is_for_our_own_words_alone():
    """``gr.Markdown`` and the two functions that call it are given constants, but for the commands of ``no_model``."""
    found = []
    for path in sorted((ROOT / "demos").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(n) for f in tree.body if getattr(f, "name", "") in ("lead", "no_model") for n in ast.walk(f)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in inner:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in ("Markdown", "lead", "no_model") and not all(isinstance(a, ast.Constant) for a in node.args):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
